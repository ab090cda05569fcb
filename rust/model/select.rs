//! Which model a tensor gets: candidates are compared by the size they are estimated to give.
//!
//! Floats are cut into their fields, with the scale offsets of [`super::scale_fit`] where they pay;
//! everything else is cut into bytes, or into the fields of floats that raw bytes may hold.
//! Estimates are integers taken from fixed samples: the same input gives the same models everywhere.

use super::histogram::{FloatHistogram, Sample, byte_histograms};
use super::normalize::{Fit, ONE_BIT, fit};
use super::scale_fit::Matrix;
use super::{Model, Plane};
use crate::constants::{MAX_CODED_BITS, STATES_BYTES, SUB_BLOCK};
use crate::dtype::{Dtype, FloatFields};
use crate::error::Result;
use crate::options::{Level, Threads};
use crate::parallel;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, with_word};

/// Sub-blocks that candidates are compared on, and that the final table is made from.
const SEARCH_BLOCKS: usize = 8;
const TABLE_BLOCKS: usize = 512;
/// Elements per row and per column that scale offsets are fitted on.
const LINE_SAMPLE: usize = 256;
/// Scale offsets are not tried below this number of elements.
const MIN_SCALED_ELEMENTS: usize = 4096;
/// Below this number of elements other threads are not worth waking.
const PARALLEL_ELEMENTS: usize = 1 << 17;
/// A model must take less than 99.5 % of the raw size, in 1/1024.
const WORTHWHILE: u64 = 1019;

/// A model and what it is estimated to take, in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) model: Model,
    pub(crate) bytes: u64,
}

/// What the planner knows of the input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) chunk_bytes: usize,
    pub(crate) level: Level,
    pub(crate) threads: Threads,
}

/// How the elements of a float candidate are read.
#[derive(Clone, Copy, Debug)]
struct FloatLayout {
    fields: FloatFields,
    phase: usize,
}

impl Input<'_> {
    /// A size of a sample; the level `max` looks at everything.
    fn effort(&self, sample: usize) -> usize {
        if self.level == Level::Max {
            usize::MAX
        } else {
            sample
        }
    }

    fn sample(&self, element_bytes: usize, phase: usize, blocks: usize) -> Sample<'_> {
        Sample::new(self.bytes, element_bytes, phase, blocks)
    }

    /// States and heads of one coded plane in every chunk.
    fn plane_overhead(&self) -> u64 {
        self.bytes.len().div_ceil(self.chunk_bytes) as u64 * (STATES_BYTES as u64 + 8)
    }

    /// Scales a cost among `counted` elements to `elements`, in bytes.
    fn total(cost: u64, counted: u64, elements: usize) -> u64 {
        let total = u128::from(cost) * elements as u128 / u128::from(counted.max(1));
        (total / u128::from(8 * ONE_BIT)) as u64
    }
}

/// The best model for a tensor of floats, with scale offsets if the model is scaled.
///
/// `None` when raw is no larger.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(crate) fn select_float(
    input: &Input<'_>,
    fields: FloatFields,
    shape: &[u64],
) -> Result<Option<(Model, Option<ScaleOffsets>)>> {
    let layout = FloatLayout { fields, phase: 0 };
    let scale = match input.level {
        Level::Fast => None,
        Level::Default | Level::Max => select_scale(input, layout, shape)?,
    };
    let best = float_candidate(input, layout, scale.as_ref(), input.effort(TABLE_BLOCKS));
    Ok(best
        .filter(|best| is_worthwhile(best.bytes, input))
        .map(|best| (best.model, scale)))
}

fn is_worthwhile(bytes: u64, input: &Input<'_>) -> bool {
    u128::from(bytes) * 1024 < input.bytes.len() as u128 * u128::from(WORTHWHILE)
}

/// The scale offsets that make the smallest estimate, if any make it smaller.
fn select_scale(
    input: &Input<'_>,
    layout: FloatLayout,
    shape: &[u64],
) -> Result<Option<ScaleOffsets>> {
    let element_bytes = layout.fields.element_bits as usize / 8;
    let elements = input.bytes.len() / element_bytes;
    if elements < MIN_SCALED_ELEMENTS {
        return Ok(None);
    }
    let views = views(shape, elements);
    let small = elements < PARALLEL_ELEMENTS;
    let threads = if small {
        Threads::new(1)
    } else {
        input.threads
    };
    let fitted = parallel::map(threads, views.len(), |view| {
        let matrix = Matrix {
            bytes: input.bytes,
            fields: layout.fields,
            columns: views[view],
            sample: input.effort(LINE_SAMPLE),
        };
        let axes = matrix.fit();
        [
            matrix.offsets(&axes.rows, &axes.cols),
            matrix.offsets(&axes.rows, &[]),
            matrix.offsets(&[], &axes.cols_alone),
        ]
    })?;
    // The first of equals wins: no offsets before any, so that the choice is the same every time.
    let candidates: Vec<Option<ScaleOffsets>> = std::iter::once(None)
        .chain(fitted.into_iter().flatten().map(Some))
        .collect();
    let sizes = parallel::map(threads, candidates.len(), |candidate| {
        let scale = candidates[candidate].as_ref();
        float_candidate(input, layout, scale, input.effort(SEARCH_BLOCKS))
            .map_or(u64::MAX, |best| {
                best.bytes + scale.map_or(0, |offsets| offsets.wire_len() as u64)
            })
    })?;
    let best = sizes
        .into_iter()
        .zip(candidates)
        .min_by_key(|&(size, _)| size);
    Ok(best.and_then(|(_, scale)| scale))
}

/// Row lengths of the matrices a shape can be seen as: first dimension or last dimension apart.
fn views(shape: &[u64], elements: usize) -> Vec<usize> {
    let dims: Vec<u64> = shape.iter().copied().filter(|&dim| dim > 1).collect();
    let mut columns = match dims.as_slice() {
        [first, .., last] => vec![elements / *first as usize, *last as usize],
        _ => Vec::new(),
    };
    columns.dedup();
    columns
}

/// The best cut of floats at one alignment.
fn float_candidate(
    input: &Input<'_>,
    layout: FloatLayout,
    scale: Option<&ScaleOffsets>,
    blocks: usize,
) -> Option<Candidate> {
    let FloatFields {
        element_bits,
        exponent_bits,
        mantissa_bits,
    } = layout.fields;
    let joint_limit = if input.level == Level::Fast {
        0
    } else {
        mantissa_bits.min(2)
    };
    let sample = input.sample(element_bits as usize / 8, layout.phase, blocks);
    let histogram = FloatHistogram::new(&sample, scale, exponent_bits + joint_limit, mantissa_bits);
    let sign = if histogram.constant_sign().is_some() && all_signs_equal(&sample) {
        histogram.constant_sign()
    } else {
        None
    };
    (0..=joint_limit)
        .flat_map(|joint| [(joint, false), (joint, true)])
        .filter(|&(_, in_symbol)| !(in_symbol && (sign.is_some() || input.level == Level::Fast)))
        .filter_map(|(joint, in_symbol)| {
            let cut = FloatCut {
                layout,
                joint,
                in_symbol,
                constant_sign: sign,
            };
            cut.candidate(input, &sample, &histogram, scale.is_some())
        })
        .min_by_key(|candidate| candidate.bytes)
}

/// Whether the sign bits of all elements agree, also of those outside the sample.
fn all_signs_equal(sample: &Sample<'_>) -> bool {
    fn check<W: Word>(sample: &Sample<'_>) -> bool {
        let elements = sample.bytes.get(sample.phase..).unwrap_or_default();
        let mut signs = elements
            .chunks_exact(W::BYTES)
            .map(|element| element[W::BYTES - 1] >> 7);
        let first = signs.next();
        signs.all(|sign| Some(sign) == first)
    }
    with_word!(sample.element_bytes, W => check::<W>(sample))
}

/// One way to cut a float into symbol and raw bits.
struct FloatCut {
    layout: FloatLayout,
    /// Mantissa bits in the symbol.
    joint: u32,
    /// Whether the sign is the lowest bit of the symbol.
    in_symbol: bool,
    constant_sign: Option<u64>,
}

impl FloatCut {
    fn candidate(
        &self,
        input: &Input<'_>,
        sample: &Sample<'_>,
        histogram: &FloatHistogram,
        scaled: bool,
    ) -> Option<Candidate> {
        let FloatFields {
            element_bits,
            exponent_bits,
            mantissa_bits,
        } = self.layout.fields;
        let top_bits = exponent_bits + self.joint;
        let symbol_bits = top_bits + u32::from(self.in_symbol);
        if symbol_bits > MAX_CODED_BITS {
            return None;
        }
        let mantissa_left = mantissa_bits - self.joint;
        let sign_bits = u32::from(!self.in_symbol && self.constant_sign.is_none());
        let raw_bits = mantissa_left + sign_bits;

        let counts = histogram.symbols(top_bits, self.in_symbol);
        let exact = sample.is_exact();
        let symbol = fit(&counts, symbol_bits, exact)?;
        let mut cost = symbol.cost() + histogram.total * u64::from(raw_bits) * ONE_BIT;
        let saved = histogram.zero_bits(mantissa_left);
        let per_block = histogram.total.div_ceil(SUB_BLOCK as u64) * 8;
        let trailing_zeros = raw_bits > 0 && saved > per_block;
        if trailing_zeros {
            cost -= (saved - per_block) * ONE_BIT;
        }

        let mut planes = Vec::new();
        let sign_position = match self.constant_sign {
            Some(sign) => {
                planes.push(Plane::constant(1, sign));
                element_bits - 1
            }
            None if self.in_symbol => mantissa_left,
            None => 0,
        };
        planes.push(plane(symbol, symbol_bits));
        if raw_bits > 0 {
            planes.push(Plane::raw(raw_bits));
        }
        let model = Model {
            element_bytes: element_bits as usize / 8,
            phase: self.layout.phase,
            sign_position,
            trailing_zeros,
            scaled,
            planes,
        };
        finish(
            input,
            model,
            Input::total(cost, histogram.total, sample.elements()),
        )
    }
}

fn plane(fit: Fit, bits: u32) -> Plane {
    match fit {
        Fit::Constant(value) => Plane::constant(bits, value),
        Fit::Coded { table, .. } => Plane::coded(table),
    }
}

/// Adds what the model itself takes.
fn finish(input: &Input<'_>, model: Model, bytes: u64) -> Option<Candidate> {
    let model = model.validated().ok()?;
    let mut wire = Vec::new();
    model.write_to(&mut wire);
    let overhead = input.plane_overhead() * model.tables().count() as u64;
    Some(Candidate {
        model,
        bytes: bytes + overhead + wire.len() as u64,
    })
}

/// Types that the generic mode looks for in raw bytes and in integers of the same width.
const GENERIC_FLOATS: [Dtype; 6] = [
    Dtype::Bfloat16,
    Dtype::Float16,
    Dtype::Float32,
    Dtype::Float64,
    Dtype::Float8E4m3fn,
    Dtype::Float8E5m2,
];

/// The best model for integers, or for bytes that may hold anything; `None` when raw is no larger.
///
/// `width` is the size of the elements, `None` if the bytes say nothing of it.
pub(crate) fn select_generic(
    input: &Input<'_>,
    width: Option<usize>,
    hint: Option<Dtype>,
) -> Option<Model> {
    let widths = width.map_or(vec![1, 2, 4, 8], |width| vec![width]);
    let mut layouts: Vec<FloatLayout> = Vec::new();
    for dtype in hint.iter().chain(&GENERIC_FLOATS) {
        let Some(fields) = dtype.float_fields() else {
            continue;
        };
        let bytes = fields.element_bits as usize / 8;
        if width.is_some_and(|width| width != bytes) {
            continue;
        }
        let phases = if width.is_some() { 1 } else { bytes };
        layouts.extend((0..phases).map(|phase| FloatLayout { fields, phase }));
    }
    let fit_bytes = |width: usize, blocks: usize| byte_candidate(input, width, blocks);
    let fit_float =
        |layout: FloatLayout, blocks: usize| float_candidate(input, layout, None, blocks);

    let bytes = widths
        .into_iter()
        .filter_map(|width| Some((fit_bytes(width, 2)?.bytes, width)))
        .min_by_key(|&(size, _)| size);
    // Which layout it is shows with exponents alone; how to cut it is searched for the winner only.
    let quick = Input {
        level: Level::Fast,
        ..*input
    };
    let float = layouts
        .into_iter()
        .filter_map(|layout| Some((float_candidate(&quick, layout, None, 2)?.bytes, layout)))
        .min_by_key(|&(size, _)| size);
    let best = match (bytes, float) {
        (Some((bytes, _)), Some((floats, layout))) if floats < bytes => {
            fit_float(layout, usize::MAX)
        }
        (Some((_, width)), _) => fit_bytes(width, usize::MAX),
        (None, Some((_, layout))) => fit_float(layout, usize::MAX),
        (None, None) => None,
    }?;
    is_worthwhile(best.bytes, input).then_some(best.model)
}

/// Cuts elements into bytes, each of them raw, constant, or coded in its top bits.
fn byte_candidate(input: &Input<'_>, width: usize, blocks: usize) -> Option<Candidate> {
    let sample = input.sample(width, 0, blocks);
    let counted = sample.taken();
    let mut cost = 0;
    let mut planes = Vec::new();
    for counts in byte_histograms(&sample) {
        let overhead =
            input.plane_overhead() * 8 * ONE_BIT * counted / sample.elements().max(1) as u64;
        let coded = (4..=8).rev().filter_map(|bits| {
            let fit = fit(&leading_bits(&counts, bits), bits, sample.is_exact())?;
            let states = if matches!(fit, Fit::Constant(_)) {
                0
            } else {
                overhead
            };
            Some((
                fit.cost() + counted * u64::from(8 - bits) * ONE_BIT + states,
                bits,
                fit,
            ))
        });
        let (size, bits, fit) = coded.min_by_key(|&(size, ..)| size)?;
        let raw = counted * 8 * ONE_BIT;
        if size < raw {
            cost += size;
            planes.push(plane(fit, bits));
            if bits < 8 {
                planes.push(Plane::raw(8 - bits));
            }
        } else {
            cost += raw;
            planes.push(Plane::raw(8));
        }
    }
    if planes
        .iter()
        .all(|plane| plane.mode == super::PlaneMode::Raw)
    {
        return None;
    }
    let element_bits = width as u32 * 8;
    let model = Model {
        element_bytes: width,
        phase: 0,
        sign_position: element_bits - 1,
        trailing_zeros: false,
        scaled: false,
        planes,
    };
    let bytes = Input::total(cost, counted, sample.elements());
    let model = model.validated().ok()?;
    Some(Candidate { model, bytes })
}

/// Counts of the top `bits` of a byte.
fn leading_bits(counts: &[u32], bits: u32) -> Vec<u32> {
    counts
        .chunks(1 << (8 - bits))
        .map(|group| group.iter().sum())
        .collect()
}
