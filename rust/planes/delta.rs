//! One element next to its base element: class, symbol and raw bits, and back.
//!
//! ```text
//! v, s: magnitude and sign of the new element       o, so: those of the base's       t = s xor so
//! context:     v with t put in above the raw bits
//! difference:  (t ? not v : v) - o                  as wide as the element
//! integer:     the elements' difference
//!              symbol | raw bits
//! ```
//! Loops go through a block one step after the other, so that the compiler vectorises each; what an element
//! has from its class is added up over the classes, which are few, instead of being looked up.
//! Place in docs/format.md: "Delta chunk".

use super::words::{Word, low_mask};
use crate::constants::{ESCAPE, MAX_CONTEXTS};
use crate::model::delta::{DeltaModel, Relation};
use crate::simd::Kernels;

/// Elements that are handled at a time: their intermediate values stay in the first cache.
pub(crate) const BLOCK: usize = 1024;

/// What a class needs, in the form that loops use it.
#[derive(Clone, Copy, Debug, Default)]
struct ClassForm {
    first_key: u8,
    is_context: bool,
    raw_bits: u32,
    base: u64,
}

/// A [`DeltaModel`] ready to cut elements with.
#[derive(Clone, Debug)]
pub(crate) struct DeltaCut {
    kept_bits: u32,
    dropped_bits: u32,
    key_shift: u32,
    integers: bool,
    forms: Vec<ClassForm>,
    /// The class of each key, and its raw bits.
    by_key: Box<[[u8; 256]; 2]>,
    /// Bit `i` of a class says whether index `i` has slots; others have none, and neither has the escape.
    has_slots: [u64; MAX_CONTEXTS],
}

/// What the elements of a block have from their classes, and what they are cut into.
#[derive(Debug)]
pub(crate) struct Block<W> {
    old: [W; BLOCK],
    base: [W; BLOCK],
    /// All bits set for the relation context.
    context: [W; BLOCK],
    pub(crate) symbols: [W; BLOCK],
    pub(crate) raw: [W; BLOCK],
    /// Of the element's class, which of its indices have slots.
    slots: [u64; BLOCK],
}

impl<W: Word> Default for Block<W> {
    fn default() -> Self {
        let zeros = [W::default(); BLOCK];
        Self {
            old: zeros,
            base: zeros,
            context: zeros,
            symbols: zeros,
            raw: zeros,
            slots: [0; BLOCK],
        }
    }
}

/// All bits set, or none.
#[inline(always)]
fn mask_if<W: Word>(condition: bool) -> W {
    W::default().wrapping_sub(W::truncate(u64::from(condition)))
}

impl DeltaCut {
    pub(crate) fn new(model: &DeltaModel) -> Self {
        let forms = model.classes.iter().map(|class| ClassForm {
            first_key: class.first_key,
            is_context: class.relation == Relation::Context,
            raw_bits: class.raw_bits,
            base: class.table.base(),
        });
        let mut cut = Self {
            kept_bits: model.kept_bits(),
            dropped_bits: model.dropped_bits,
            key_shift: model.key_shift,
            integers: model.classes[0].relation == Relation::Integer,
            forms: forms.collect(),
            by_key: Box::new([[0; 256]; 2]),
            has_slots: [0; MAX_CONTEXTS],
        };
        for (number, form) in (0..).zip(&cut.forms) {
            let [classes, raw_bits] = &mut *cut.by_key;
            let first = usize::from(form.first_key);
            classes[first..].fill(number);
            raw_bits[first..].fill(form.raw_bits as u8);
        }
        for (has_slots, class) in cut.has_slots.iter_mut().zip(&model.classes) {
            for (index, _) in class.table.slot_order() {
                *has_slots |= 1 << index;
            }
        }
        cut
    }

    /// The bits of elements that are not dropped.
    #[inline(always)]
    fn kept<W: Word>(&self) -> W {
        W::mask(self.kept_bits)
    }

    #[inline(always)]
    fn magnitude<W: Word>(&self) -> W {
        W::mask(self.kept_bits - 1)
    }

    /// The class and the number of raw bits of each element of a block, from its base elements.
    #[inline(always)]
    pub(crate) fn classify<W: Word>(
        &self,
        kernels: Kernels,
        base: &[W::Bytes],
        classes: &mut [u8],
        raw_bits: &mut [u8],
    ) {
        let count = base.len();
        let (classes, raw_bits) = (&mut classes[..count], &mut raw_bits[..count]);
        let mut keys = [0; BLOCK];
        let keys = &mut keys[..count];
        let magnitude = self.magnitude::<W>();
        for i in 0..count {
            let old = W::from_bytes(base[i]) >> self.dropped_bits;
            keys[i] = ((old & magnitude) >> self.key_shift).low_byte();
        }
        let [class_of, raw_bits_of] = &*self.by_key;
        let tables = [class_of, raw_bits_of];
        let done = kernels.look_up_bytes(tables, keys, [&mut *classes, &mut *raw_bits]);
        let (keys, classes, raw_bits) =
            (&keys[done..], &mut classes[done..], &mut raw_bits[done..]);
        let count = keys.len();
        classes.fill(0);
        raw_bits.fill(self.forms[0].raw_bits as u8);
        for pair in self.forms.windows(2) {
            let first = pair[1].first_key;
            let more = (pair[1].raw_bits as u8).wrapping_sub(pair[0].raw_bits as u8);
            for i in 0..count {
                let above = u8::from(keys[i] >= first).wrapping_neg();
                classes[i] += above & 1;
                raw_bits[i] = raw_bits[i].wrapping_add(above & more);
            }
        }
    }

    /// Looks up what a block's elements have from their classes.
    #[inline(always)]
    fn look_up<W: Word>(
        &self,
        kernels: Kernels,
        base: &[W::Bytes],
        classes: &[u8],
        block: &mut Block<W>,
    ) {
        let count = base.len();
        let classes = &classes[..count];
        let Block {
            old,
            base: bases,
            context,
            ..
        } = block;
        let (old, bases, context) = (
            &mut old[..count],
            &mut bases[..count],
            &mut context[..count],
        );
        let kept = self.kept::<W>();
        for i in 0..count {
            old[i] = (W::from_bytes(base[i]) >> self.dropped_bits) & kept;
        }
        let form = |form: &ClassForm| (W::truncate(form.base), mask_if::<W>(form.is_context));
        let (mut base_of, mut context_of) =
            ([W::default(); MAX_CONTEXTS], [W::default(); MAX_CONTEXTS]);
        for (number, class) in self.forms.iter().enumerate() {
            (base_of[number], context_of[number]) = form(class);
        }
        kernels.look_up_words(&context_of, classes, context);
        let done = kernels.look_up_words(&base_of, classes, bases);
        let (classes, bases, context) =
            (&classes[done..], &mut bases[done..], &mut context[done..]);
        let count = classes.len();
        let (first_base, first_context) = form(&self.forms[0]);
        bases.fill(first_base);
        context.fill(first_context);
        for (number, pair) in (1_u8..).zip(self.forms.windows(2)) {
            let ((base, is), (base_before, was)) = (form(&pair[1]), form(&pair[0]));
            let (more, other) = (base.wrapping_sub(base_before), is ^ was);
            for i in 0..count {
                let above = mask_if::<W>(classes[i] >= number);
                bases[i] = bases[i].wrapping_add(above & more);
                context[i] = context[i] ^ (above & other);
            }
        }
    }

    /// Takes the elements of a block apart. Returns the bits that were dropped, all elements' together.
    #[inline(always)]
    pub(crate) fn split<W: Word>(
        &self,
        kernels: Kernels,
        (new, base): (&[W::Bytes], &[W::Bytes]),
        (classes, raw_bits): (&[u8], &[u8]),
        block: &mut Block<W>,
        indices: &mut [u8],
    ) -> W {
        self.look_up(kernels, base, classes, block);
        let count = new.len();
        let (kept, magnitude) = (self.kept::<W>(), self.magnitude::<W>());
        let top = self.kept_bits - 1;
        let (dropped, dropped_mask) = (self.dropped_bits, W::mask(self.dropped_bits));
        let Block {
            old,
            base: bases,
            context,
            symbols,
            raw,
            slots,
        } = block;
        let (old, bases, context) = (&old[..count], &bases[..count], &context[..count]);
        let (symbols, raw) = (&mut symbols[..count], &mut raw[..count]);
        let raw_bits = &raw_bits[..count];
        let mut lost = W::default();
        for i in 0..count {
            let (element, r) = (W::from_bytes(new[i]), u32::from(raw_bits[i]));
            lost = lost | element & dropped_mask;
            let x = (element >> dropped) & kept;
            let below = !(kept << r);
            let word = if self.integers {
                x.wrapping_sub(old[i])
            } else {
                let t = (x ^ old[i]) >> top;
                let v = x & magnitude;
                let apart = (v & !below) << 1 | t << r | v & below;
                let all = W::default().wrapping_sub(t);
                let difference = (v ^ all).wrapping_sub(old[i] & magnitude);
                context[i] & apart | !context[i] & difference
            } & kept;
            symbols[i] = word >> r;
            raw[i] = word & below;
        }
        let (classes, indices) = (&classes[..count], &mut indices[..count]);
        let most = W::truncate(u64::from(ESCAPE));
        for i in 0..count {
            let offset = symbols[i].wrapping_sub(bases[i]) & (kept >> u32::from(raw_bits[i]));
            indices[i] = offset.smaller(most).low_byte();
        }
        let slots = &mut slots[..count];
        let done = kernels.look_up_words(&self.has_slots, classes, slots);
        for (slots, &class) in slots[done..].iter_mut().zip(&classes[done..]) {
            *slots = self.has_slots[usize::from(class) % MAX_CONTEXTS];
        }
        for i in 0..count {
            let has_slots = slots[i] >> (u32::from(indices[i]) % u64::BITS) & 1 == 1;
            indices[i] = if has_slots { indices[i] } else { ESCAPE };
        }
        lost
    }

    /// Puts the elements of a block together; those with an escape are left to [`DeltaCut::join_one`].
    ///
    /// The raw bits are in the block.
    #[inline(always)]
    pub(crate) fn join<W: Word>(
        &self,
        kernels: Kernels,
        base: &[W::Bytes],
        (classes, raw_bits, indices): (&[u8], &[u8], &[u8]),
        block: &mut Block<W>,
        out: &mut [W::Bytes],
    ) {
        self.look_up(kernels, base, classes, block);
        let count = base.len();
        let Block {
            old,
            base: bases,
            context,
            raw,
            ..
        } = block;
        let (old, bases, context) = (&old[..count], &bases[..count], &context[..count]);
        let (raw, raw_bits, indices) = (&raw[..count], &raw_bits[..count], &indices[..count]);
        let out = &mut out[..count];
        for i in 0..count {
            let symbol = bases[i].wrapping_add(W::truncate(u64::from(indices[i])));
            let x = self.element(symbol, u32::from(raw_bits[i]), raw[i], old[i], context[i]);
            out[i] = (x << self.dropped_bits).to_bytes();
        }
    }

    /// Element `i` of the block that was joined last, from its symbol.
    pub(crate) fn join_one<W: Word>(
        &self,
        block: &Block<W>,
        i: usize,
        raw_bits: u8,
        symbol: u64,
    ) -> W::Bytes {
        let (symbol, r) = (W::truncate(symbol), u32::from(raw_bits));
        let x = self.element(symbol, r, block.raw[i], block.old[i], block.context[i]);
        (x << self.dropped_bits).to_bytes()
    }

    /// The element of a symbol, whose bits above its width do not count.
    #[inline(always)]
    fn element<W: Word>(&self, symbol: W, r: u32, raw: W, old: W, context: W) -> W {
        let (kept, magnitude) = (self.kept::<W>(), self.magnitude::<W>());
        let top = self.kept_bits - 1;
        let word = symbol << r | raw;
        if self.integers {
            return word.wrapping_add(old) & kept;
        }
        let apart = (symbol >> 1) << r | raw;
        let sum = word.wrapping_add(old & magnitude) & kept;
        let sum_sign = sum >> top;
        let folded = sum ^ W::default().wrapping_sub(sum_sign);
        let t = context & symbol & W::truncate(1) | !context & sum_sign;
        let v = (context & apart | !context & folded) & magnitude;
        ((t << top) ^ (old & !magnitude)) | v
    }

    /// Whether a symbol is within the width it has with so many raw bits.
    pub(crate) fn is_in_range(&self, raw_bits: u8, symbol: u64) -> bool {
        symbol <= low_mask(self.kept_bits - u32::from(raw_bits))
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

    fn roundtrip<W: Word + std::fmt::Debug>(new: u64, old: u64, cut: &DeltaCut, bits: u32) {
        let dropped = cut.dropped_bits;
        let [new, old] = [new, old].map(|x| [W::truncate(x << dropped).to_bytes(); 3]);
        let (classes, raw_bits) = (&mut [0; 3], &mut [0; 3]);
        cut.classify::<W>(Kernels::scalar(), &old, classes, raw_bits);
        assert_eq!((*classes, *raw_bits), ([0; 3], [bits as u8; 3]));
        let mut block = Box::new(Block::<W>::default());
        let mut indices = [0; 3];
        let parts = (&classes[..], &raw_bits[..]);
        let lost = cut.split(
            Kernels::scalar(),
            (&new, &old),
            parts,
            &mut block,
            &mut indices,
        );
        assert_eq!(lost, W::default());
        let symbol = block.symbols[1].widen();
        assert!(cut.is_in_range(raw_bits[1], symbol));
        assert!(block.raw[1].widen() <= low_mask(bits));
        let mut out = old;
        let parts = (&classes[..], &raw_bits[..], &indices[..]);
        cut.join(Kernels::scalar(), &old, parts, &mut block, &mut out);
        if indices[1] == ESCAPE {
            out[1] = cut.join_one(&block, 1, raw_bits[1], symbol);
        }
        assert_eq!(W::from_bytes(out[1]), W::from_bytes(new[1]));
    }

    proptest! {
        #[test]
        fn elements_come_back(
            new: u64, old: u64, log2 in 0_usize..4, raw in 0_u32..57, dropped in 0_u32..24,
            near: bool, relation in prop::sample::select(vec![
                Relation::Context, Relation::Difference, Relation::Integer,
            ]),
        ) {
            let bits = 8 << log2;
            let dropped = dropped.min(bits - 2);
            let raw = raw.min(bits - dropped - 2);
            let cut = cut(1 << log2, dropped, raw, relation);
            let new = if near { old.wrapping_add(new & 3) } else { new };
            let [new, old] = [new, old].map(|x| x & low_mask(bits - dropped));
            crate::planes::words::with_word!(1 << log2, W => roundtrip::<W>(new, old, &cut, raw));
        }
    }

    #[test]
    fn differences_are_small_on_both_sides_of_zero() {
        let cut = cut(2, 0, 0, Relation::Difference);
        let signed = |new: u16, old: u16| {
            let mut block = Box::new(Block::<u16>::default());
            let elements = (&[new.to_le_bytes()][..], &[old.to_le_bytes()][..]);
            cut.split(
                Kernels::scalar(),
                elements,
                (&[0], &[0]),
                &mut block,
                &mut [0],
            );
            block.symbols[0].cast_signed()
        };
        assert_eq!(signed(0x3f81, 0x3f80), 1);
        assert_eq!(signed(0xbf81, 0xbf80), 1);
        assert_eq!(signed(0xbf7f, 0xbf80), -1);
        assert_eq!(signed(0x8001, 0x0001), -3);
    }
}
