//! One way to cut floats into symbol, sign and raw bits, and what it would cost.

use super::histogram::FloatHistogram;
use super::normalize::{Fit, ONE_BIT, estimate, fit};
use super::sample::Sample;
use super::select::{Candidate, Input};
use super::{Model, Plane};
use crate::constants::{MAX_CODED_BITS, SUB_BLOCK};
use crate::dtype::FloatFields;

/// How the elements of a float candidate are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloatLayout {
    pub(crate) fields: FloatFields,
    pub(crate) phase: usize,
}

/// See the module documentation.
pub(super) struct FloatCut {
    pub(super) layout: FloatLayout,
    /// Mantissa bits in the symbol.
    pub(super) joint: u32,
    /// Whether the sign is the lowest bit of the symbol.
    pub(super) in_symbol: bool,
    pub(super) constant_sign: Option<u64>,
}

impl FloatCut {
    /// Width of the symbol, if it is one that can be coded.
    fn symbol_bits(&self) -> Option<u32> {
        let bits = self.top_bits() + u32::from(self.in_symbol);
        (bits <= MAX_CODED_BITS).then_some(bits)
    }

    /// Magnitude bits in the symbol.
    fn top_bits(&self) -> u32 {
        self.layout.fields.exponent_bits + self.joint
    }

    fn mantissa_left(&self) -> u32 {
        self.layout.fields.mantissa_bits - self.joint
    }

    fn raw_bits(&self) -> u32 {
        self.mantissa_left() + u32::from(!self.in_symbol && self.constant_sign.is_none())
    }

    /// What the raw bits of the counted elements take, and whether trailing zeros are left out.
    fn raw_cost(&self, histogram: &FloatHistogram) -> (u64, bool) {
        let raw_bits = self.raw_bits();
        let cost = histogram.total * u64::from(raw_bits) * ONE_BIT;
        let saved = histogram.zero_bits(self.mantissa_left());
        let per_block = histogram.total.div_ceil(SUB_BLOCK as u64) * 8;
        if raw_bits > 0 && saved > per_block {
            (cost - (saved - per_block) * ONE_BIT, true)
        } else {
            (cost, false)
        }
    }

    /// About the bytes that [`FloatCut::candidate`] would find.
    pub(super) fn estimate(
        &self,
        input: &Input<'_>,
        sample: &Sample<'_>,
        histogram: &FloatHistogram,
    ) -> Option<u64> {
        let bits = self.symbol_bits()?;
        let (_, counts) = histogram.symbols(self.top_bits(), self.in_symbol);
        let (cost, symbols) = estimate(&counts, bits, sample.is_exact())?;
        let overhead = if symbols > 1 {
            input.plane_overhead() + 2 * symbols as u64
        } else {
            0
        };
        let cost = cost + self.raw_cost(histogram).0;
        Some(Input::total(cost, histogram.total, sample.elements()) + overhead)
    }

    /// The model of this cut.
    pub(super) fn candidate(
        &self,
        input: &Input<'_>,
        sample: &Sample<'_>,
        histogram: &FloatHistogram,
        scaled: bool,
    ) -> Option<Candidate> {
        let symbol_bits = self.symbol_bits()?;
        let (first, used) = histogram.symbols(self.top_bits(), self.in_symbol);
        let mut counts = vec![0; 1 << symbol_bits];
        counts[first..first + used.len()].copy_from_slice(&used);
        let symbol = fit(&counts, symbol_bits, sample.is_exact())?;
        let (raw_cost, trailing_zeros) = self.raw_cost(histogram);
        let cost = symbol.cost() + raw_cost;

        let element_bits = self.layout.fields.element_bits;
        let mut planes = Vec::new();
        let sign_position = match self.constant_sign {
            Some(sign) => {
                planes.push(Plane::constant(1, sign));
                element_bits - 1
            }
            None if self.in_symbol => self.mantissa_left(),
            None => 0,
        };
        planes.push(plane(symbol, symbol_bits));
        if self.raw_bits() > 0 {
            planes.push(Plane::raw(self.raw_bits()));
        }
        let model = Model {
            element_bytes: element_bits as usize / 8,
            phase: self.layout.phase,
            sign_position,
            trailing_zeros,
            scaled,
            planes,
        };
        let bytes = Input::total(cost, histogram.total, sample.elements());
        with_overhead(input, model, bytes)
    }
}

pub(super) fn plane(fit: Fit, bits: u32) -> Plane {
    match fit {
        Fit::Constant(value) => Plane::constant(bits, value),
        Fit::Coded { table, .. } => Plane::coded(table),
    }
}

/// Adds what the model itself takes.
fn with_overhead(input: &Input<'_>, model: Model, bytes: u64) -> Option<Candidate> {
    let model = model.validated().ok()?;
    let mut wire = Vec::new();
    model.write_to(&mut wire);
    let overhead = input.plane_overhead() * model.tables().count() as u64;
    Some(Candidate {
        model,
        bytes: bytes + overhead + wire.len() as u64,
    })
}
