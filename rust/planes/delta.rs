//! One element next to its base element: class, symbol and raw bits, and back.
//!
//! ```text
//! v, s: magnitude and sign of the new element       o, so: those of the base's       t = s xor so
//! context:     v with t put in above the raw bits
//! difference:  (t ? not v : v) - o                  as wide as the element
//! integer:     the elements' difference
//!              symbol | raw bits
//! ```
//! Numbers are 64 bits wide whatever the element; `kept` low bits of them count.
//! Place in docs/format.md: "Delta chunk".

use super::words::low_mask;
use crate::constants::{ESCAPE, MAX_CONTEXTS, MAX_SYMBOLS};
use crate::model::delta::{DeltaModel, Relation};

/// What a class needs, in the form that loops use it.
#[derive(Clone, Copy, Debug, Default)]
struct ClassForm {
    is_context: bool,
    raw_bits: u32,
    raw_mask: u64,
    symbol_mask: u64,
    base: u64,
}

/// A [`DeltaModel`] ready to cut elements with.
#[derive(Clone, Debug)]
pub(crate) struct DeltaCut {
    kept_bits: u32,
    kept_mask: u64,
    magnitude_mask: u64,
    key_shift: u32,
    pub(crate) integers: bool,
    class_of_key: [u8; 256],
    forms: [ClassForm; MAX_CONTEXTS],
    /// Whether an index of a class has slots.
    listed: [[bool; MAX_SYMBOLS]; MAX_CONTEXTS],
}

impl DeltaCut {
    pub(crate) fn new(model: &DeltaModel) -> Self {
        let kept_bits = model.kept_bits();
        let mut cut = Self {
            kept_bits,
            kept_mask: low_mask(kept_bits),
            magnitude_mask: low_mask(kept_bits - 1),
            key_shift: model.key_shift,
            integers: model.classes[0].relation == Relation::Integer,
            class_of_key: [0; 256],
            forms: [ClassForm::default(); MAX_CONTEXTS],
            listed: [[false; MAX_SYMBOLS]; MAX_CONTEXTS],
        };
        for (number, class) in model.classes.iter().enumerate() {
            cut.class_of_key[usize::from(class.first_key)..].fill(number as u8);
            cut.forms[number] = ClassForm {
                is_context: class.relation == Relation::Context,
                raw_bits: class.raw_bits,
                raw_mask: low_mask(class.raw_bits),
                symbol_mask: low_mask(kept_bits - class.raw_bits),
                base: class.table.base(),
            };
            for (index, _) in class.table.slot_order() {
                cut.listed[number][usize::from(index)] = true;
            }
        }
        cut
    }

    /// The class of an element whose base element is `old`.
    #[inline(always)]
    pub(crate) fn class(&self, old: u64) -> u8 {
        let key = (old & self.magnitude_mask) >> self.key_shift;
        self.class_of_key[usize::from(key as u8)]
    }

    #[inline(always)]
    fn form(&self, class: u8) -> &ClassForm {
        &self.forms[usize::from(class) % MAX_CONTEXTS]
    }

    /// Raw bits of an element of a class.
    #[inline(always)]
    pub(crate) fn raw_bits(&self, class: u8) -> u32 {
        self.form(class).raw_bits
    }

    /// The symbol of an index, which is not the escape.
    #[inline(always)]
    pub(crate) fn symbol(&self, class: u8, index: u8) -> u64 {
        let form = self.form(class);
        form.base.wrapping_add(u64::from(index)) & form.symbol_mask
    }

    /// The index of a symbol; `None` if it has to be escaped.
    #[inline(always)]
    pub(crate) fn index(&self, class: u8, symbol: u64) -> Option<u8> {
        let form = self.form(class);
        let index = symbol.wrapping_sub(form.base) & form.symbol_mask;
        let listed = &self.listed[usize::from(class) % MAX_CONTEXTS];
        (index < u64::from(ESCAPE) && listed[index as usize % MAX_SYMBOLS]).then_some(index as u8)
    }

    /// Whether a class has an escape.
    pub(crate) fn has_escape(&self, class: u8) -> bool {
        self.listed[usize::from(class) % MAX_CONTEXTS][usize::from(ESCAPE)]
    }

    /// Whether a symbol is within its class's width.
    pub(crate) fn is_in_range(&self, class: u8, symbol: u64) -> bool {
        symbol <= self.form(class).symbol_mask
    }

    /// Symbol and raw bits of an element.
    #[inline(always)]
    pub(crate) fn split(&self, class: u8, new: u64, old: u64) -> (u64, u64) {
        let form = self.form(class);
        let word = if self.integers {
            new.wrapping_sub(old)
        } else {
            let other_sign = (new ^ old) >> (self.kept_bits - 1);
            let magnitude = new & self.magnitude_mask;
            if form.is_context {
                let above = magnitude & !form.raw_mask;
                above << 1 | other_sign << form.raw_bits | magnitude & form.raw_mask
            } else {
                (magnitude ^ other_sign.wrapping_neg()).wrapping_sub(old & self.magnitude_mask)
            }
        } & self.kept_mask;
        (word >> form.raw_bits, word & form.raw_mask)
    }

    /// The element that [`DeltaCut::split`] took apart.
    #[inline(always)]
    pub(crate) fn join<const INTEGERS: bool>(
        &self,
        class: u8,
        symbol: u64,
        raw: u64,
        old: u64,
    ) -> u64 {
        let form = self.form(class);
        let word = symbol << form.raw_bits | raw;
        if INTEGERS {
            return word.wrapping_add(old) & self.kept_mask;
        }
        // Both relations are computed: classes change from element to element.
        let apart_sign = symbol & 1;
        let apart = symbol >> 1 << form.raw_bits | raw;
        let sum = word.wrapping_add(old & self.magnitude_mask) & self.kept_mask;
        let sum_sign = sum >> (self.kept_bits - 1);
        let (other_sign, magnitude) = if form.is_context {
            (apart_sign, apart)
        } else {
            (sum_sign, (sum ^ sum_sign.wrapping_neg()))
        };
        let sign = (old >> (self.kept_bits - 1)) ^ other_sign;
        sign << (self.kept_bits - 1) | magnitude & self.magnitude_mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::context_table::ContextTable;
    use crate::model::delta::DeltaClass;
    use proptest::prelude::*;

    fn cut(element_bytes: usize, dropped: u32, raw_bits: u32, relation: Relation) -> DeltaCut {
        let symbol_bits = element_bytes as u32 * 8 - dropped - raw_bits;
        let model = DeltaModel {
            element_bytes,
            dropped_bits: dropped,
            key_shift: 0,
            classes: vec![DeltaClass {
                first_key: 0,
                relation,
                raw_bits,
                table: ContextTable::new(symbol_bits, 0, vec![255], 1).unwrap(),
            }],
        };
        DeltaCut::new(&model.validated().unwrap())
    }

    proptest! {
        #[test]
        fn elements_come_back(
            new: u64, old: u64, log2 in 0_usize..4, raw in 0_u32..57, dropped in 0_u32..24,
            relation in prop::sample::select(vec![
                Relation::Context, Relation::Difference, Relation::Integer,
            ]),
        ) {
            let bits = 8 << log2;
            let dropped = dropped.min(bits - 2);
            let raw = raw.min(bits - dropped - 2);
            let cut = cut(1 << log2, dropped, raw, relation);
            let [new, old] = [new, old].map(|x| x & low_mask(bits - dropped));
            let (symbol, low) = cut.split(0, new, old);
            prop_assert!(cut.is_in_range(0, symbol) && low <= low_mask(raw));
            let back = if relation == Relation::Integer {
                cut.join::<true>(0, symbol, low, old)
            } else {
                cut.join::<false>(0, symbol, low, old)
            };
            prop_assert_eq!(back, new);
        }
    }

    #[test]
    fn differences_are_small_on_both_sides_of_zero() {
        let cut = cut(2, 0, 0, Relation::Difference);
        let signed = |new, old| cut.split(0, new, old).0 as i16;
        assert_eq!(signed(0x3f81, 0x3f80), 1);
        assert_eq!(signed(0xbf81, 0xbf80), 1);
        assert_eq!(signed(0xbf7f, 0xbf80), -1);
        assert_eq!(signed(0x8001, 0x0001), -3);
    }
}
