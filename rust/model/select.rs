//! Which model a tensor gets: candidates are compared by the size they are estimated to give.
//!
//! Floats are cut into their fields, with the scale offsets of [`super::scale_fit`] where they pay;
//! [`super::select_bytes`] is for everything else. Estimates are integers taken from fixed samples:
//! the same input gives the same models everywhere.

use std::cell::OnceCell;

use super::Model;
use super::float_cut::{FloatCut, FloatLayout, SignPlace};
use super::histogram::FloatHistogram;
use super::normalize::ONE_BIT;
use super::sample::Sample;
use super::scale_fit::{Matrix, octave_log2};
use super::thorough;
use crate::constants::STATES_BYTES;
use crate::dtype::FloatFields;
use crate::error::Result;
use crate::options::{Level, Threads};
use crate::parallel;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, with_word};
use crate::simd::Kernels;

/// Elements that candidates are compared on, and that the final table is made from.
const SEARCH_ELEMENTS: usize = 1 << 13;
const TABLE_ELEMENTS: usize = 1 << 16;
/// Elements per row and per column that scale offsets are fitted on.
const LINE_SAMPLE: usize = 128;
/// Dimensions below this are those of a filter.
const SHORT_DIM: u64 = 16;
/// Scale offsets are not tried below this number of elements.
pub(super) const MIN_SCALED_ELEMENTS: usize = 4096;
/// Below this number of elements no time is taken to compare each axis of offsets.
const SMALL_ELEMENTS: usize = 2 * SEARCH_ELEMENTS;
/// Below this number of elements other threads are not worth waking.
const PARALLEL_ELEMENTS: usize = 1 << 21;
/// A model must take less than 99.5 % of the raw size, in 1/1024.
const WORTHWHILE: u64 = 1019;
/// Cuts are fitted exactly while their estimates are within a 512th of the best.
const CLOSE_CUTS_LOG2: u32 = 9;
/// Where octaves lie changes the order of cuts by less than a 64th.
const KEPT_CUTS_LOG2: u32 = 6;

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
    pub(crate) kernels: Kernels,
}

impl Input<'_> {
    /// A size of a sample; the level `max` looks at everything.
    pub(super) fn effort(&self, sample: usize) -> usize {
        if self.level == Level::Max {
            usize::MAX
        } else {
            sample
        }
    }

    pub(super) fn sample(&self, element_bytes: usize, phase: usize, limit: usize) -> Sample<'_> {
        Sample::new(self.bytes, element_bytes, phase, limit)
    }

    /// The threads to look for the best model of so many elements with.
    fn search_threads(&self, elements: usize) -> Threads {
        if elements < PARALLEL_ELEMENTS {
            Threads::new(1)
        } else {
            self.threads
        }
    }

    /// The elements in rows of `columns`.
    pub(super) fn matrix(&self, layout: FloatLayout, columns: usize) -> Matrix<'_> {
        let elements = self.bytes.len() * 8 / layout.fields.element_bits as usize;
        Matrix {
            bytes: self.bytes,
            fields: layout.fields,
            columns,
            sample: self.effort(LINE_SAMPLE),
            threads: self.search_threads(elements),
            kernels: self.kernels,
        }
    }

    /// States and heads of one coded plane in every chunk.
    pub(super) fn plane_overhead(&self) -> u64 {
        self.bytes.len().div_ceil(self.chunk_bytes) as u64 * (STATES_BYTES as u64 + 8)
    }

    /// Scales a cost among `counted` elements to `elements`, in bytes.
    pub(super) fn total(cost: u64, counted: u64, elements: usize) -> u64 {
        let total = u128::from(cost) * elements as u128 / u128::from(counted.max(1));
        (total / u128::from(8 * ONE_BIT)) as u64
    }

    pub(super) fn is_worthwhile(&self, bytes: u64) -> bool {
        u128::from(bytes) * 1024 < self.bytes.len() as u128 * u128::from(WORTHWHILE)
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
) -> Result<Option<(Candidate, Option<ScaleOffsets>)>> {
    let layout = FloatLayout { fields, phase: 0 };
    let elements = input.bytes.len() * 8 / fields.element_bits as usize;
    if input.level == Level::Default && elements < SMALL_ELEMENTS {
        return select_small(input, layout, shape);
    }
    let mut scale = match input.level {
        Level::Fast => None,
        Level::Default | Level::Max => select_scale(input, layout, shape)?,
    };
    let best = float_candidate(input, layout, scale.as_mut(), input.effort(TABLE_ELEMENTS));
    let Some(best) = best.filter(|best| input.is_worthwhile(best.bytes)) else {
        return Ok(None);
    };
    if input.level == Level::Max {
        return thorough::with_classes(input, layout, shape, (best, scale)).map(Some);
    }
    Ok(Some((best, scale)))
}

/// [`select_float`] for a tensor that is counted whole: the counts that offsets are compared by are also
/// those that the table is made from, and each axis is kept or not by what its offsets say themselves.
fn select_small(
    input: &Input<'_>,
    layout: FloatLayout,
    shape: &[u64],
) -> Result<Option<(Candidate, Option<ScaleOffsets>)>> {
    let element_bytes = layout.fields.element_bits as usize / 8;
    let sample = input.sample(element_bytes, 0, TABLE_ELEMENTS);
    let mut cuts = Cuts::new(input, layout, &sample, None, false);
    let mut scale = None;
    let mut size = cuts.smallest_estimate().unwrap_or(u64::MAX);
    let elements = sample.elements();
    let views = (elements >= MIN_SCALED_ELEMENTS).then(|| views(shape, elements, input.level));
    for columns in views.into_iter().flatten() {
        let matrix = input.matrix(layout, columns);
        let axes = matrix.fit()?;
        let useful = |axis| if matrix.pays(axis) { axis } else { &[] };
        let (rows, cols): (&[i8], &[i8]) = (useful(&axes.rows), useful(&axes.cols));
        if rows.is_empty() && cols.is_empty() {
            continue;
        }
        let offsets = matrix.offsets(rows, cols);
        let scaled = Cuts::new(input, layout, &sample, Some(&offsets), true);
        let estimate = scaled.smallest_estimate();
        let estimate = estimate.map_or(u64::MAX, |size| size + offsets.wire_len() as u64);
        if estimate < size {
            (cuts, scale, size) = (scaled, Some(offsets), estimate);
        }
    }
    if let Some(scale) = &mut scale {
        scale.add_to_all(cuts.settle_phase(octave_log2(layout.fields)));
    }
    let best = cuts.best().filter(|best| input.is_worthwhile(best.bytes));
    Ok(best.map(|best| (best, scale)))
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
    let threads = input.search_threads(elements);
    // The first of equals wins: no offsets before any, so that the choice is the same every time.
    let mut candidates: Vec<Option<ScaleOffsets>> = vec![None];
    for columns in views(shape, elements, input.level) {
        let matrix = input.matrix(layout, columns);
        let axes = matrix.fit()?;
        let has_offsets = |axis: &[i8]| axis.iter().any(|&offset| offset != 0);
        let (rows, cols) = (&axes.rows, &axes.cols);
        let choices: [(&[i8], &[i8]); 3] = [(rows, cols), (rows, &[]), (&[], cols)];
        let (by_row, by_col) = (has_offsets(rows), has_offsets(cols));
        let useful = [by_row && by_col, by_row, by_col];
        let useful = choices.iter().zip(useful).filter(|&(_, useful)| useful);
        candidates.extend(useful.map(|((rows, cols), _)| Some(matrix.offsets(rows, cols))));
    }
    if candidates.len() == 1 && input.level != Level::Max {
        return Ok(None);
    }
    let sizes = parallel::map(threads, candidates.len(), |candidate| {
        scale_estimate(input, layout, candidates[candidate].as_ref())
    })?;
    let best = sizes
        .into_iter()
        .zip(candidates)
        .min_by_key(|&(size, _)| size);
    match best {
        Some((size, scale)) if input.level == Level::Max => {
            thorough::improve(input, layout, shape, (size, scale))
        }
        best => Ok(best.and_then(|(_, scale)| scale)),
    }
}

/// About what the tensor takes with these offsets, and they themselves.
pub(super) fn scale_estimate(
    input: &Input<'_>,
    layout: FloatLayout,
    scale: Option<&ScaleOffsets>,
) -> u64 {
    let element_bytes = layout.fields.element_bits as usize / 8;
    let sample = input.sample(element_bytes, 0, input.effort(SEARCH_ELEMENTS));
    let cuts = Cuts::new(input, layout, &sample, scale, false);
    cuts.smallest_estimate().map_or(u64::MAX, |size| {
        size + scale.map_or(0, |s| s.wire_len() as u64)
    })
}

/// Row lengths of the matrices a shape can be seen as: first dimension or last dimension apart, at the
/// level `max` every cut between two dimensions. Short last dimensions are those of a filter, which
/// has a scale as a whole.
pub(super) fn views(shape: &[u64], elements: usize, level: Level) -> Vec<usize> {
    let dims: Vec<u64> = shape.iter().copied().filter(|&dim| dim > 1).collect();
    let mut columns = match dims.as_slice() {
        [_, rest @ ..] if level == Level::Max => (0..rest.len())
            .map(|from| rest[from..].iter().product::<u64>() as usize)
            .collect(),
        [first, rest @ .., last] => {
            let short = rest
                .iter()
                .rev()
                .take_while(|&&dim| *last < SHORT_DIM && dim < SHORT_DIM);
            let filter: u64 = short.product();
            vec![elements / *first as usize, (filter * last) as usize]
        }
        _ => Vec::new(),
    };
    columns.dedup();
    columns
}

/// The ways to cut floats at one alignment, and the counts to compare them by.
struct Cuts<'a> {
    input: &'a Input<'a>,
    sample: &'a Sample<'a>,
    histogram: FloatHistogram,
    layout: FloatLayout,
    /// Mantissa bits that a symbol may have.
    joint_limit: u32,
    scaled: bool,
    ways: Vec<FloatCut>,
    /// The estimate of each way, made when it is first asked for; `None` for ways that are not possible.
    sizes: OnceCell<Vec<Option<u64>>>,
}

impl<'a> Cuts<'a> {
    fn new(
        input: &'a Input<'a>,
        layout: FloatLayout,
        sample: &'a Sample<'a>,
        scale: Option<&ScaleOffsets>,
        finely: bool,
    ) -> Self {
        let fields = layout.fields;
        let fast = input.level == Level::Fast;
        let joint_limit = if fast { 0 } else { fields.mantissa_bits.min(2) };
        let counted = if finely || input.level == Level::Max {
            octave_log2(fields)
        } else {
            joint_limit
        };
        let histogram = FloatHistogram::new(input.kernels, sample, scale, fields, counted);
        let mut cuts = Self {
            input,
            sample,
            layout,
            joint_limit,
            scaled: scale.is_some(),
            ways: Vec::new(),
            sizes: OnceCell::new(),
            histogram,
        };
        cuts.list(cuts.histogram.constant_sign());
        cuts
    }

    /// Lists the ways to cut; a constant sign is a plane of its own.
    fn list(&mut self, constant_sign: Option<u64>) {
        let apart = constant_sign.is_some() || self.input.level == Level::Fast;
        let counted = self.histogram.joint_bits();
        // A second symbol has no escape: every element has to be looked at.
        let thorough = self.input.level == Level::Max && self.sample.is_exact();
        let most_second = if thorough { counted } else { 0 };
        let (joint_limit, layout) = (self.joint_limit, self.layout);
        let cuts = (0..=joint_limit).flat_map(|joint| {
            let most = most_second.min(counted - joint);
            (0..=most).flat_map(move |second| {
                [SignPlace::Raw, SignPlace::First, SignPlace::Second].map(|sign| FloatCut {
                    layout,
                    joint,
                    second,
                    sign,
                    constant_sign,
                })
            })
        });
        let ways = cuts.filter(|cut| match cut.sign {
            SignPlace::Raw => true,
            SignPlace::First => !apart,
            SignPlace::Second => !apart && cut.second > 0,
        });
        self.ways = ways.collect();
        self.sizes.take();
    }

    /// Estimates of the cuts that are possible, in the order of their number.
    fn estimates(&self) -> impl Iterator<Item = (u64, &FloatCut)> {
        let estimate = |cut| FloatCut::estimate(cut, self.input, self.sample, &self.histogram);
        let sizes = self
            .sizes
            .get_or_init(|| self.ways.iter().map(estimate).collect());
        let sizes = sizes.iter().zip(&self.ways);
        sizes.filter_map(|(size, cut)| Some(((*size)?, cut)))
    }

    /// Gives up the ways that are a 64th larger than the smallest.
    fn keep_close(&mut self) {
        let Some(least) = self.smallest_estimate() else {
            return;
        };
        let sizes = self.sizes.take().unwrap_or_default();
        let mut keep = sizes.into_iter().map(|size| {
            let limit = least + (least >> KEPT_CUTS_LOG2);
            size.is_some_and(|size| size <= limit)
        });
        self.ways.retain(|_| keep.next().unwrap_or(true));
    }

    /// Takes the number of steps off all magnitudes that makes the smallest estimate, and returns it.
    ///
    /// Exponents change at octaves: where those lie among the magnitudes is free to choose.
    fn settle_phase(&mut self, octave_log2: u32) -> i8 {
        let Some((least, cut)) = self.estimates().min_by_key(|&(size, _)| size) else {
            return 0;
        };
        let half = 1 << octave_log2 >> 1;
        let lowered = (1 - half..=half).filter(|&steps| steps != 0).map(|steps| {
            let histogram = self.histogram.lowered(steps);
            let size = cut.estimate(self.input, self.sample, &histogram);
            (size.unwrap_or(u64::MAX), steps, histogram)
        });
        match lowered.min_by_key(|&(size, ..)| size) {
            Some((size, steps, histogram)) if size < least => {
                self.keep_close();
                self.histogram = histogram;
                steps
            }
            _ => 0,
        }
    }

    fn smallest_estimate(&self) -> Option<u64> {
        self.estimates().map(|(size, _)| size).min()
    }

    /// The best cut, with its tables.
    fn best(&self) -> Option<Candidate> {
        let sizes: Vec<(u64, &FloatCut)> = self.estimates().collect();
        let least = sizes.iter().map(|&(size, _)| size).min()?;
        let limit = least + (least >> CLOSE_CUTS_LOG2);
        sizes
            .into_iter()
            .filter(|&(size, _)| size <= limit)
            .filter_map(|(_, cut)| {
                let found = cut.candidate(self.input, self.sample, &self.histogram, self.scaled)?;
                Some((found.bytes + cut.slowness(found.bytes), found))
            })
            .min_by_key(|&(bytes, _)| bytes)
            .map(|(_, candidate)| candidate)
    }
}

/// About what floats at one alignment take.
pub(super) fn float_estimate(input: &Input<'_>, layout: FloatLayout, limit: usize) -> Option<u64> {
    let element_bytes = layout.fields.element_bits as usize / 8;
    let sample = input.sample(element_bytes, layout.phase, limit);
    Cuts::new(input, layout, &sample, None, false).smallest_estimate()
}

/// The best cut of floats at one alignment, and the best phase of the offsets.
pub(super) fn float_candidate(
    input: &Input<'_>,
    layout: FloatLayout,
    scale: Option<&mut ScaleOffsets>,
    limit: usize,
) -> Option<Candidate> {
    let element_bytes = layout.fields.element_bits as usize / 8;
    let sample = input.sample(element_bytes, layout.phase, limit);
    let mut cuts = Cuts::new(input, layout, &sample, scale.as_deref(), scale.is_some());
    let unsure = cuts.histogram.constant_sign().is_some() && !sample.is_exact();
    if unsure && !all_signs_equal(&sample) {
        cuts.list(None);
    }
    if let Some(scale) = scale.filter(|scale| scale.has_offsets()) {
        scale.add_to_all(cuts.settle_phase(octave_log2(layout.fields)));
    }
    cuts.best()
}

/// Whether the sign bits of all elements agree, also of those outside the sample.
fn all_signs_equal(sample: &Sample<'_>) -> bool {
    fn check<W: Word>(sample: &Sample<'_>) -> bool {
        let mut buffer = [W::default(); 1024];
        let elements = sample.bytes.get(sample.phase..).unwrap_or_default();
        let whole = elements.len() / W::BYTES * W::BYTES;
        let (mut all, mut any) = (W::mask(W::BITS), W::default());
        elements[..whole].chunks(1024 * W::BYTES).all(|piece| {
            let words = &mut buffer[..piece.len() / W::BYTES];
            W::load(piece, words);
            for &word in &*words {
                (all, any) = (all & word, any | word);
            }
            (all >> (W::BITS - 1)) == (any >> (W::BITS - 1))
        })
    }
    with_word!(sample.element_bytes, W => check::<W>(sample))
}
