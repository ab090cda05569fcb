//! What people call the bits of an element.

use crate::dtype::{Dtype, FloatFields};
use crate::model::Model;

/// Says which bits of an element a plane holds.
pub(super) fn field_name(dtype: Dtype, model: &Model, number: usize) -> String {
    let bits = model.element_bits();
    let above: u32 = model.planes[..number].iter().map(|plane| plane.bits).sum();
    let top = bits - above;
    // From the top: where each bit of the plane is in the element.
    let places = (top - model.planes[number].bits..top).rev().map(|bit| {
        match bit.cmp(&model.sign_position) {
            std::cmp::Ordering::Equal => bits - 1,
            std::cmp::Ordering::Greater => bit - 1,
            std::cmp::Ordering::Less => bit,
        }
    });
    let places: Vec<u32> = places.collect();
    match dtype.float_fields() {
        Some(fields) if fields.element_bits == bits => float_name(fields, &places),
        _ => bits_name(bits, &places),
    }
}

/// `exponent + mantissa 1`: the parts of a float, with a number if it is not all of their bits.
fn float_name(fields: FloatFields, places: &[u32]) -> String {
    let part = |place: u32| match place {
        it if it == fields.element_bits - 1 => ("sign", 1),
        it if it >= fields.mantissa_bits => ("exponent", fields.exponent_bits),
        _ => ("mantissa", fields.mantissa_bits),
    };
    let parts = places.chunk_by(|&a, &b| part(a) == part(b)).map(|run| {
        let (name, width) = part(run[0]);
        if run.len() as u32 == width {
            name.to_owned()
        } else {
            format!("{name} {}", run.len())
        }
    });
    parts.collect::<Vec<_>>().join(" + ")
}

/// `byte 1`, or `bits 7-14 of 16`.
fn bits_name(bits: u32, places: &[u32]) -> String {
    let runs = places.chunk_by(|&a, &b| a == b + 1).map(|run| {
        let (high, low) = (run[0], run[run.len() - 1]);
        if high == low {
            high.to_string()
        } else {
            format!("{low}-{high}")
        }
    });
    let runs: Vec<String> = runs.collect();
    match places {
        [high, .., low] if runs.len() == 1 && low.is_multiple_of(8) && high - low == 7 => {
            format!("byte {} of {}", low / 8, bits / 8)
        }
        _ => format!("bits {} of {bits}", runs.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_names() {
        let fields = Dtype::Bfloat16.float_fields().unwrap();
        assert_eq!(
            float_name(fields, &[14, 13, 12, 11, 10, 9, 8, 7]),
            "exponent"
        );
        assert_eq!(
            float_name(fields, &[14, 13, 12, 11, 10, 9, 8, 7, 6]),
            "exponent + mantissa 1"
        );
        assert_eq!(
            float_name(fields, &[5, 4, 3, 2, 1, 0, 15]),
            "mantissa 6 + sign"
        );
        assert_eq!(
            bits_name(16, &[15, 14, 13, 12, 11, 10, 9, 8]),
            "byte 1 of 2"
        );
        assert_eq!(
            bits_name(16, &[6, 5, 4, 3, 2, 1, 0, 15]),
            "bits 0-6, 15 of 16"
        );
    }
}
