//! An output, cut where chunks of its stream may end.
//!
//! Place in docs/format.md: none.

/// What is left of an output, cut at multiples of a length. Gives out the position of each piece in the
/// stream's bytes, and the piece.
pub(super) struct Pieces<'o> {
    position: u64,
    rest: &'o mut [u8],
    piece_bytes: u64,
}

impl<'o> Pieces<'o> {
    /// Pieces of the output for the bytes from `start` on; `piece_bytes` is not 0.
    pub(super) fn new(start: u64, out: &'o mut [u8], piece_bytes: u64) -> Self {
        Self {
            position: start,
            rest: out,
            piece_bytes,
        }
    }
}

impl<'o> Iterator for Pieces<'o> {
    type Item = (u64, &'o mut [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let position = self.position;
        // Up to the next border, wherever the range begins.
        let step = self.piece_bytes - position % self.piece_bytes;
        let rest = std::mem::take(&mut self.rest);
        let (now, later) = rest.split_at_mut(rest.len().min(step as usize));
        self.position = position.saturating_add(now.len() as u64);
        self.rest = later;
        Some((position, now))
    }
}
