//! Models for what is not known to be floats: integers, and bytes that may hold anything.
//!
//! Elements are cut into bytes, or into the fields of floats that the bytes may hold.

use super::float_cut::{FloatLayout, plane};
use super::histogram::byte_histograms;
use super::normalize::{Fit, ONE_BIT, fit};
use super::select::{Candidate, Input, float_candidate};
use super::{Model, Plane, PlaneMode};
use crate::dtype::Dtype;
use crate::options::Level;

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
    let fit_bytes = |width: usize, limit: usize| byte_candidate(input, width, limit);
    let fit_float = |layout: FloatLayout, limit: usize| float_candidate(input, layout, None, limit);

    let bytes = widths
        .into_iter()
        .filter_map(|width| Some((fit_bytes(width, 2 * 4096)?.bytes, width)))
        .min_by_key(|&(size, _)| size);
    // Which layout it is shows with exponents alone; how to cut it is searched for the winner only.
    let quick = Input {
        level: Level::Fast,
        ..*input
    };
    let float = layouts
        .into_iter()
        .filter_map(|layout| {
            Some((
                float_candidate(&quick, layout, None, 2 * 4096)?.bytes,
                layout,
            ))
        })
        .min_by_key(|&(size, _)| size);
    let best = match (bytes, float) {
        (Some((bytes, _)), Some((floats, layout))) if floats < bytes => {
            fit_float(layout, usize::MAX)
        }
        (Some((_, width)), _) => fit_bytes(width, usize::MAX),
        (None, Some((_, layout))) => fit_float(layout, usize::MAX),
        (None, None) => None,
    }?;
    input.is_worthwhile(best.bytes).then_some(best.model)
}

/// Cuts elements into bytes, each of them raw, constant, or coded in its top bits.
fn byte_candidate(input: &Input<'_>, width: usize, limit: usize) -> Option<Candidate> {
    let sample = input.sample(width, 0, limit);
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
