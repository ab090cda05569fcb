#!/bin/sh
# Runs the fuzz targets one after the other; exits with 1 if one of them finds something.
#
#   fuzz/run.sh [SECONDS [TARGET...]]    60 seconds each, all targets
#   fuzz/run.sh minimise                 puts what was found to be new into the corpus, made small
#
# Needs a C++ compiler and the stable toolchain: RUSTC_BOOTSTRAP lets it build for the sanitizer and the
# coverage that libFuzzer is led by, with the flags of cargo-fuzz, whose layout this folder has.
set -eu
cd "$(dirname "$0")"

host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-target}
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# Big allocations that fail are errors of the library, and are to be seen as such.
export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0
all=$(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' Cargo.toml | grep -v '^neuzip_rs')

mode=${1:-60}
[ $# -gt 0 ] && shift
targets=${*:-$all}

echo "==> building the targets (the first time: some minutes)"
cargo build --quiet --release --target "$host" --target-dir "$target_dir" --bins
bin=$target_dir/$host/release

# Inputs stay small: what a target does with more is the same again.
longest() {
  case $1 in header | differential | container | safetensors_* | zipnn) echo 16384 ;; *) echo 512 ;; esac
}

if [ "$mode" = minimise ]; then
  for name in $targets; do
    mkdir -p "corpus/$name" "work/$name" "work/merged"
    rm -rf "work/merged/$name"
    mkdir "work/merged/$name"
    "$bin/$name" -merge=1 -max_len="$(longest "$name")" "work/merged/$name" "corpus/$name" "work/$name" \
      >"work/$name.merge.log" 2>&1
    rm -rf "corpus/$name"
    mv "work/merged/$name" "corpus/$name"
    echo "$name: $(find "corpus/$name" -type f | wc -l) inputs, $(du -bs "corpus/$name" | cut -f1) bytes"
  done
  exit
fi

failed=
for name in $targets; do
  mkdir -p "corpus/$name" "work/$name" "artifacts/$name"
  echo "==> $name, $mode seconds"
  # Standard error goes through awk, which says every pulse and the figures of the end.
  set +e
  { "$bin/$name" -max_total_time="$mode" -timeout=60 -rss_limit_mb=4096 -print_final_stats=1 \
      -max_len="$(longest "$name")" -artifact_prefix="artifacts/$name/" \
      "work/$name" "corpus/$name" 2>&1; echo "exit $?"; } |
    awk -v log_file="work/$name.log" '
      { print >log_file }
      /INITED|pulse|DONE|^stat::number_of|ERROR|panicked|SUMMARY|Test unit written/ { print "    " $0; fflush() }
      /^exit / { status = $2 }
      END { exit status != 0 }'
  status=$?
  set -e
  [ "$status" -eq 0 ] || failed="$failed $name"
done
if [ -n "$failed" ]; then
  echo "==> findings in:$failed" >&2
  echo "    inputs are in fuzz/artifacts; put each into fuzz/crashes/TARGET when it is fixed" >&2
  exit 1
fi
echo "==> no findings"
