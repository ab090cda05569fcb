//! One way to cut floats into symbol, sign and raw bits, and what it would cost.

use super::histogram::FloatHistogram;
use super::normalize::{Fit, ONE_BIT, estimate, fit_part};
use super::sample::Sample;
use super::second::SecondCounts;
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

/// Where a sign goes that is not constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignPlace {
    /// Below the mantissa.
    Raw,
    /// The lowest bit of the first symbol.
    First,
    /// The lowest bit of the second symbol.
    Second,
}

/// See the module documentation.
pub(super) struct FloatCut {
    pub(super) layout: FloatLayout,
    /// Mantissa bits in the symbol.
    pub(super) joint: u32,
    /// Mantissa bits in a second symbol, which takes its table by the first.
    pub(super) second: u32,
    pub(super) sign: SignPlace,
    pub(super) constant_sign: Option<u64>,
}

impl FloatCut {
    /// Width of the symbol, if it is one that can be coded.
    fn symbol_bits(&self) -> Option<u32> {
        let bits = self.top_bits() + u32::from(self.sign == SignPlace::First);
        (bits <= MAX_CODED_BITS).then_some(bits)
    }

    /// Magnitude bits in the symbol.
    fn top_bits(&self) -> u32 {
        self.layout.fields.exponent_bits + self.joint
    }

    fn mantissa_left(&self) -> u32 {
        self.layout.fields.mantissa_bits - self.joint - self.second
    }

    fn raw_bits(&self) -> u32 {
        let sign = self.sign == SignPlace::Raw && self.constant_sign.is_none();
        self.mantissa_left() + u32::from(sign)
    }

    /// Calls `look` with the counts of both symbols, if there is a second one.
    fn with_second<T>(
        &self,
        histogram: &FloatHistogram,
        look: impl FnOnce(SecondCounts<'_>) -> T,
    ) -> Option<T> {
        let bits = self.top_bits() + self.second;
        let second_bits = self.second + u32::from(self.sign == SignPlace::Second);
        let first_bits = self.symbol_bits().filter(|_| second_bits > 0)?;
        let (first, counts) = match self.sign {
            SignPlace::Raw => histogram.symbols(bits, false),
            SignPlace::Second => histogram.symbols(bits, true),
            // The sign is above the second symbol: both halves one after the other.
            SignPlace::First => histogram.symbols_by_sign(bits, self.second),
        };
        Some(look(SecondCounts {
            first: first >> second_bits,
            counts: &counts,
            first_bits,
            second_bits,
        }))
    }

    /// What a second symbol has to save to be worth decoding in twice the time, of so many bytes: more above
    /// two bits, which decoders tell apart with three comparisons.
    pub(super) fn slowness(&self, bytes: u64) -> u64 {
        let second_bits = self.second + u32::from(self.sign == SignPlace::Second);
        let second = if second_bits > 0 { bytes / 160 } else { 0 };
        second + (bytes >> 12) * u64::from(second_bits.saturating_sub(2))
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
        let (_, counts) = histogram.symbols(self.top_bits(), self.sign == SignPlace::First);
        let (cost, symbols) = estimate(&counts, bits, sample.is_exact())?;
        let overhead = if symbols > 1 {
            input.plane_overhead() + 2 * symbols as u64
        } else {
            0
        };
        let second = self.with_second(histogram, |counts| counts.estimate());
        let overhead = match second {
            Some(_) if symbols <= 1 => return None,
            Some(_) => 2 * overhead,
            None => overhead,
        };
        let cost = cost + second.unwrap_or(0) + self.raw_cost(histogram).0;
        let bytes = Input::total(cost, histogram.total, sample.elements()) + overhead;
        Some(bytes + self.slowness(bytes))
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
        let (first, used) = histogram.symbols(self.top_bits(), self.sign == SignPlace::First);
        let symbol = fit_part(first, &used, symbol_bits, sample.is_exact())?;
        let (raw_cost, trailing_zeros) = self.raw_cost(histogram);
        let mut cost = symbol.cost() + raw_cost;

        let element_bits = self.layout.fields.element_bits;
        let mut planes = Vec::new();
        let sign_position = match self.constant_sign {
            Some(sign) => {
                planes.push(Plane::constant(1, sign));
                element_bits - 1
            }
            None if self.sign == SignPlace::Raw => 0,
            None if self.sign == SignPlace::First => self.mantissa_left() + self.second,
            None => self.mantissa_left(),
        };
        planes.push(plane(symbol, symbol_bits));
        let first_plane = planes.len() as u8 - 1;
        if let Some(second) = self.with_second(histogram, |counts| counts.fit(first_plane)) {
            let (tables, second_cost) = second?;
            cost += second_cost;
            planes.push(Plane::contexts(tables));
        }
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
    let overhead = input.plane_overhead() * model.coded_planes().count() as u64;
    Some(Candidate {
        model,
        bytes: bytes + overhead + wire.len() as u64,
    })
}
