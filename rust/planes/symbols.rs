//! Values of one or two symbols in contexts: what a [`super::cut::Cut`] has where it has more than one table.
//!
//! The first symbol has a table, or one for each class of lines; the second one, if there is one, a table
//! for each of a few first symbols. Tiles are decoded symbol by symbol and put together by safe code;
//! kernels look the bytes of values up, with the sign where the element has it (`FirstTables`,
//! `SecondTables`). Place in docs/format.md: "Context tables".

use super::coded::{Placement, PlaneCoder};
use super::contexts::{ContextCoder, Lines};
use super::cut::{Cut, CutTables, FirstTable};
use crate::constants::MAX_SYMBOLS;
use crate::entropy::rans::{
    Decoder, EscapedValues, FirstTables, FirstValues, SecondTables, Spec, Value, ValueMap,
};
use crate::error::Result;
use crate::model::Model;
use crate::model::contexts::ContextTables;
use crate::simd::{Kernels, Task};

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct SymbolCoder {
    cut: Cut,
    first: First,
    second: Option<ContextCoder>,
    /// What kernels look up.
    pub(crate) first_tables: FirstTables,
    pub(crate) second_tables: Option<Box<SecondTables>>,
}

#[derive(Debug)]
enum First {
    Single(Box<PlaneCoder>),
    Classes(Box<ContextCoder>),
}

/// The escaped first symbols of a chunk.
#[derive(Debug, Default)]
pub(crate) struct EscapedSymbols {
    /// The symbols, which tiles are made of.
    pub(crate) symbols: EscapedValues,
    /// The bytes of their values.
    pub(crate) values: EscapedValues,
    /// Where the contexts of their second symbols begin.
    pub(crate) contexts: EscapedValues,
}

impl SymbolCoder {
    pub(crate) fn new(model: &Model, cut: Cut, tables: CutTables<'_>) -> Self {
        let planes = &model.planes;
        let (first, classes) = match tables.first {
            FirstTable::Single(table) => {
                let coder = PlaneCoder::new(table, Placement::default());
                let classes = vec![coder.spec.clone()];
                (First::Single(Box::new(coder)), classes)
            }
            FirstTable::Classes(tables_of_classes) => {
                let coder = ContextCoder::new(tables_of_classes, planes, tables.number);
                (
                    First::Classes(Box::new(coder)),
                    class_specs(tables_of_classes),
                )
            }
        };
        let second = tables
            .second
            .map(|second| ContextCoder::new(second, planes, tables.number + 1));
        let second_tables = second.as_ref().map(|second| {
            let contexts: Vec<_> = second.tables.slot_orders().collect();
            let value = |index| cut.second_bytes(second.tables.symbol(index));
            Box::new(SecondTables::new(&contexts, value))
        });
        let mut coder = Self {
            cut,
            first,
            second,
            first_tables: FirstTables {
                classes,
                values: FirstValues {
                    low: [0; MAX_SYMBOLS],
                    high: [0; MAX_SYMBOLS],
                    context: [0; MAX_SYMBOLS],
                    escape: false,
                },
            },
            second_tables,
        };
        let map = coder.map().clone();
        let mut values = coder.first_tables.values.clone();
        values.escape = map.escape;
        for index in (0..MAX_SYMBOLS as u8).filter(|&index| !map.is_escape(index)) {
            let symbol = u16::from_le_bytes(map.value(index));
            let at = usize::from(index);
            [values.low[at], values.high[at]] = cut.first_bytes(symbol);
            values.context[at] = coder.context_of(symbol);
        }
        coder.first_tables.values = values;
        coder
    }

    /// The symbols of first indices.
    fn map(&self) -> &ValueMap {
        match &self.first {
            First::Single(coder) => &coder.map,
            First::Classes(coder) => &coder.map,
        }
    }

    /// Where the context of the symbol after a first one begins in its tables.
    fn context_of(&self, symbol: u16) -> u8 {
        match (&self.second, &self.second_tables) {
            (Some(second), Some(tables)) => second.context_of(symbol) << tables.steps,
            _ => 0,
        }
    }

    /// What escaped first symbols stand for.
    pub(crate) fn escaped(&self, symbols: &[u16]) -> EscapedSymbols {
        let value = |&symbol: &u16| u16::from_le_bytes(self.cut.first_bytes(symbol));
        let context = |&symbol: &u16| self.context_of(symbol).into();
        EscapedSymbols {
            symbols: EscapedValues::new(symbols.iter().copied()),
            values: EscapedValues::new(symbols.iter().map(value)),
            contexts: EscapedValues::new(symbols.iter().map(context)),
        }
    }

    /// Decodes the next values of every chunk, at most `N` of them, as [`Decoder::fill`] does.
    ///
    /// `lines` says where the values of each chunk are.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] when a stream is too short.
    pub(crate) fn fill<'d, V: Value, const N: usize>(
        &self,
        kernels: Kernels,
        (firsts, seconds): (&mut [Decoder<'d>], &mut [Decoder<'d>]),
        lines: &[Lines<'_>],
        values: &mut [&mut [V]],
    ) -> Result<()> {
        let mut symbols = [[0; N]; MAX_TOGETHER];
        let len = values.first().map_or(0, |values| values.len());
        let mut each = symbols.each_mut().map(|symbols| &mut symbols[..len]);
        if let First::Single(coder) = &self.first {
            let symbols = &mut each[..firsts.len()];
            Decoder::fill(kernels, (&coder.spec, &coder.map), firsts, symbols)?;
        }
        let mut seconds = seconds.iter_mut();
        let chunks = firsts.iter_mut().zip(lines).zip(values).zip(each);
        for (((first, &lines), values), symbols) in chunks {
            kernels.run(Fill::<V, N> {
                coder: self,
                kernels,
                first,
                second: seconds.next(),
                lines,
                symbols,
                values,
            })?;
        }
        Ok(())
    }
}

/// Chunks that are decoded together at most.
const MAX_TOGETHER: usize = crate::entropy::rans::MAX_DECODERS;

/// The tables of classes.
fn class_specs(tables: &ContextTables) -> Vec<Spec> {
    let entries = |entries: Vec<(u8, u16)>| {
        let entries = entries.into_iter();
        Spec::new(entries.map(|(index, frequency)| (index, frequency as u8)))
    };
    tables.slot_orders().map(entries).collect()
}

/// Decodes the symbols of one chunk that are still to be decoded, and makes values of them.
struct Fill<'a, 'd, V, const N: usize> {
    coder: &'a SymbolCoder,
    kernels: Kernels,
    first: &'a mut Decoder<'d>,
    second: Option<&'a mut Decoder<'d>>,
    lines: Lines<'a>,
    /// First symbols, if they have one table.
    symbols: &'a mut [u16],
    values: &'a mut [V],
}

impl<V: Value, const N: usize> Task for Fill<'_, '_, V, N> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self) -> Result<()> {
        let Self {
            coder,
            kernels,
            first,
            second,
            lines,
            symbols,
            values,
        } = self;
        let count = values.len();
        let (mut contexts, mut indices) = ([0; N], [0; N]);
        let (contexts, indices) = (&mut contexts[..count], &mut indices[..count]);
        if let First::Classes(classes) = &coder.first {
            classes.contexts::<u16>(&[], 0, lines, contexts);
            first.fill_contexts(kernels, &classes.spec, contexts, indices)?;
            for (symbol, &index) in symbols.iter_mut().zip(&*indices) {
                *symbol = first.value(&classes.map, index);
            }
        }
        let placement = coder.cut.placement();
        let symbols = &symbols[..count];
        let (Some(plane), Some(second)) = (&coder.second, second) else {
            for (value, &symbol) in values.iter_mut().zip(symbols) {
                let [low, high] = placement.place(symbol).to_le_bytes();
                *value = V::from_bytes(low, high);
            }
            return Ok(());
        };
        plane.contexts(symbols, 0, lines, contexts);
        second.fill_contexts(kernels, &plane.spec, contexts, indices)?;
        let (base, mask) = (plane.tables.symbol(0), plane.tables.mask());
        let shift = coder.cut.packed_bits();
        for (value, (&symbol, &index)) in values.iter_mut().zip(symbols.iter().zip(&*indices)) {
            let second = base.wrapping_add(u16::from(index)) & mask;
            let [low, high] = (placement.place(symbol) | second << shift).to_le_bytes();
            *value = V::from_bytes(low, high);
        }
        Ok(())
    }
}
