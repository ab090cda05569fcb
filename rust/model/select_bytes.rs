//! Models for what is not known to be floats: integers, and bytes that may hold anything.
//!
//! Elements are cut into bytes, or into the fields of floats that the bytes may hold. Which it is
//! seldom changes from one segment to the next, so a segment keeps the kind of the one before it
//! while that takes as much as it did; tables are made for every segment.

use super::float_cut::{FloatLayout, plane};
use super::histogram::byte_histograms;
use super::normalize::{ONE_BIT, estimate, fit};
use super::select::{Candidate, Input, float_candidate};
use super::select_records::{Period, RecordsPlan};
use super::{Model, Plane, PlaneMode};
use crate::dtype::Dtype;
use crate::options::Level;

/// Elements of a segment that kinds are compared on, and those that show whether a kind still fits.
const SEARCH_ELEMENTS: usize = 1 << 12;
const CHECK_ELEMENTS: usize = 1 << 11;
/// Elements that show whether anything can be saved: less than a 512th on these is nothing.
const RAW_ELEMENTS: usize = 1 << 13;
const RAW_WITHIN_LOG2: u32 = 9;
/// A kind is kept while its estimate stays within a 64th.
const KEPT_WITHIN_LOG2: u32 = 6;

/// Halves are coded if that saves a 512th: two planes are slower to decode than one.
const HALVES_LOG2: u32 = 9;

/// Types that the generic mode looks for in raw bytes and in integers of the same width.
const GENERIC_FLOATS: [Dtype; 6] = [
    Dtype::Bfloat16,
    Dtype::Float16,
    Dtype::Float32,
    Dtype::Float64,
    Dtype::Float8E4m3fn,
    Dtype::Float8E5m2,
];

/// How elements are cut.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Into the bytes of elements of so many bytes.
    Bytes(usize),
    Float(FloatLayout),
}

/// What is known of the bytes beforehand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Size of the elements, `None` if the bytes say nothing of it.
    pub(crate) width: Option<usize>,
    /// The type that the bytes probably hold.
    pub(crate) hint: Option<Dtype>,
}

/// How the chunks of a segment are stored.
#[derive(Clone, Debug)]
pub(crate) enum Chosen {
    Model(Model),
    Records(Box<RecordsPlan>),
}

/// The best model of each segment of integers, or of bytes that may hold anything; `None` where raw
/// is no larger. Segments come with the place in the tensor where they begin.
pub(crate) fn select_generic<'a>(
    segments: impl Iterator<Item = (Input<'a>, usize)>,
    known: Known,
) -> Vec<Option<(Chosen, u64)>> {
    let mut before: Option<(Kind, u64)> = None;
    let mut period = Period::Unknown;
    let select = |(input, start): (Input<'a>, usize)| {
        let kept = before.filter(|&(kind, share)| {
            let now = kind.share(&input);
            now.abs_diff(share) <= share >> KEPT_WITHIN_LOG2
        });
        if kept.is_none() {
            period = Period::Unknown;
        }
        let (kind, _) = kept.unwrap_or_else(|| {
            let kind = known.search(&input);
            *before.insert((kind, kind.share(&input)))
        });
        if let Some(found) = period.again(&input, start) {
            let bytes = found.bytes;
            return Some((Chosen::Records(Box::new(found)), bytes));
        }
        let best = if kind.saves(&input) {
            kind.candidate(&input, usize::MAX)
        } else {
            None
        };
        let best = best.filter(|best| input.is_worthwhile(best.bytes));
        let size = best
            .as_ref()
            .map_or(input.bytes.len() as u64, |best| best.bytes);
        // Floats that were found have no blocks.
        let is_float = matches!(kind, Kind::Float(_)) && size * 8 < input.bytes.len() as u64 * 7;
        if !is_float && let Some(found) = period.records(&input, start, size) {
            let bytes = found.bytes;
            return Some((Chosen::Records(Box::new(found)), bytes));
        }
        best.map(|best| (Chosen::Model(best.model), best.bytes))
    };
    segments.map(select).collect()
}

/// The best model of bytes that are looked at alone.
pub(crate) fn select_one(input: &Input<'_>, known: Known) -> Option<Candidate> {
    known.search(input).candidate(input, usize::MAX)
}

impl Known {
    /// The kind with the smallest estimate.
    fn search(self, input: &Input<'_>) -> Kind {
        let size = |kind: Kind| kind.size(input, SEARCH_ELEMENTS);
        let kinds = self.byte_kinds().chain(self.float_kinds());
        let sizes = kinds.map(|kind| (size(kind), kind));
        sizes
            .min_by_key(|&(size, _)| size)
            .map_or(Kind::Bytes(1), |(_, kind)| kind)
    }

    fn byte_kinds(self) -> impl Iterator<Item = Kind> {
        let widths = [1, 2, 4, 8].into_iter();
        widths
            .filter(move |&width| self.width.is_none_or(|known| known >= width))
            .map(Kind::Bytes)
    }

    fn float_kinds(self) -> impl Iterator<Item = Kind> {
        let fields = self
            .hint
            .into_iter()
            .chain(GENERIC_FLOATS)
            .filter_map(Dtype::float_fields);
        fields.flat_map(move |fields| {
            let bytes = fields.element_bits as usize / 8;
            let phases = match self.width {
                None => bytes,
                Some(width) => usize::from(width == bytes),
            };
            (0..phases).map(move |phase| Kind::Float(FloatLayout { fields, phase }))
        })
    }
}

impl Kind {
    pub(super) fn candidate(self, input: &Input<'_>, limit: usize) -> Option<Candidate> {
        match self {
            Self::Bytes(width) => byte_candidate(input, width, limit),
            Self::Float(layout) => float_candidate(input, layout, None, limit),
        }
    }

    /// About what the input would take.
    fn size(self, input: &Input<'_>, limit: usize) -> u64 {
        let size = match self {
            Self::Bytes(width) => Some(ByteCuts::new(input, width, limit).bytes),
            // Which layout it is shows with exponents alone; how to cut it is searched later.
            Self::Float(layout) => {
                let quick = Input {
                    level: Level::Fast,
                    ..*input
                };
                super::select::float_estimate(&quick, layout, limit)
            }
        };
        size.map_or(u64::MAX, |size| size.min(input.bytes.len() as u64))
    }

    /// Whether a sample is smaller at all, before everything is counted.
    fn saves(self, input: &Input<'_>) -> bool {
        let len = input.bytes.len() as u64;
        input.level == Level::Max || self.size(input, RAW_ELEMENTS) + (len >> RAW_WITHIN_LOG2) < len
    }

    /// [`Kind::size`] on fewer elements, in 1/65536 of the input.
    fn share(self, input: &Input<'_>) -> u64 {
        (self.size(input, CHECK_ELEMENTS) << 16) / input.bytes.len().max(1) as u64
    }
}

/// What is done with one byte of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteCut {
    Raw,
    /// So many bits are coded, the others raw.
    Top(u32),
    /// Both halves are coded, as is best for two numbers of 4 bits.
    Halves,
}

/// The bytes of elements, each of them raw or coded in its top bits or both halves.
struct ByteCuts {
    /// Counts of each byte, from the top, and how it is cut.
    planes: Vec<(Vec<u32>, ByteCut)>,
    exact: bool,
    /// What all of them are estimated to take.
    bytes: u64,
}

impl ByteCuts {
    fn new(input: &Input<'_>, width: usize, limit: usize) -> Self {
        let sample = input.sample(width, 0, limit);
        let (counted, exact) = (sample.taken(), sample.is_exact());
        let overhead =
            input.plane_overhead() * 8 * ONE_BIT * counted / sample.elements().max(1) as u64;
        let raw = counted * 8 * ONE_BIT;
        let mut total = 0;
        let planes = byte_histograms(&sample).into_iter().map(|counts| {
            let mut best = (raw, ByteCut::Raw);
            let mut leading = counts.clone();
            let size = |counts: &[u32], bits| {
                let (cost, symbols) = estimate(counts, bits, exact)?;
                Some(cost + if symbols > 1 { overhead } else { 0 })
            };
            for bits in (4..=8).rev() {
                let coded = size(&leading, bits);
                if let Some(coded) = coded {
                    let size = coded + counted * u64::from(8 - bits) * ONE_BIT;
                    if size < best.0 {
                        best = (size, ByteCut::Top(bits));
                    }
                }
                if bits == 4
                    && let Some(upper) = coded
                    && let Some(lower) = size(&lower_half(&counts), 4)
                    && upper + lower + ((upper + lower) >> HALVES_LOG2) < best.0
                {
                    best = (upper + lower, ByteCut::Halves);
                }
                leading = leading
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&[a, b]| a + b)
                    .collect();
            }
            total += best.0;
            (counts, best.1)
        });
        let planes = planes.collect();
        Self {
            planes,
            exact,
            bytes: Input::total(total, counted, sample.elements()),
        }
    }
}

/// Counts of the lower four bits.
fn lower_half(counts: &[u32]) -> Vec<u32> {
    let halves = counts.as_chunks::<16>().0;
    (0..16)
        .map(|low| halves.iter().map(|half| half[low]).sum())
        .collect()
}

/// The best way to cut bytes that are all of one kind.
pub(super) fn best_kind(input: &Input<'_>) -> Option<Kind> {
    let floats = [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32].into_iter();
    let floats = floats
        .filter_map(Dtype::float_fields)
        .map(|fields| FloatLayout { fields, phase: 0 });
    let kinds = [1, 2]
        .map(Kind::Bytes)
        .into_iter()
        .chain(floats.map(Kind::Float));
    let sizes = kinds.map(|kind| (kind.size(input, SEARCH_ELEMENTS), kind));
    sizes.min_by_key(|&(size, _)| size).map(|(_, kind)| kind)
}

/// Cuts elements into bytes, each of them raw, constant, or coded in its top bits.
fn byte_candidate(input: &Input<'_>, width: usize, limit: usize) -> Option<Candidate> {
    let cuts = ByteCuts::new(input, width, limit);
    let mut planes = Vec::new();
    for (counts, cut) in &cuts.planes {
        let bits = match *cut {
            ByteCut::Raw => {
                planes.push(Plane::raw(8));
                continue;
            }
            ByteCut::Top(bits) => bits,
            ByteCut::Halves => 4,
        };
        let leading: Vec<u32> = counts
            .chunks_exact(1 << (8 - bits))
            .map(|group| group.iter().sum())
            .collect();
        planes.push(plane(fit(&leading, bits, cuts.exact)?, bits));
        if *cut == ByteCut::Halves {
            planes.push(plane(fit(&lower_half(counts), 4, cuts.exact)?, 4));
        } else if bits < 8 {
            planes.push(Plane::raw(8 - bits));
        }
    }
    if planes.iter().all(|plane| plane.mode == PlaneMode::Raw) {
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
    let model = model.validated().ok()?;
    Some(Candidate {
        model,
        bytes: cuts.bytes,
    })
}
