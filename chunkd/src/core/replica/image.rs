//! What a write leaves in whole units: its own bytes and checksums where it covers units, merged with what is there at its
//! edges.

use bytes::Bytes;
use dfs_proto::limits::UNIT_SIZE;

use super::super::unit::UnitState;
use super::dedupe::RequestKey;

/// What is to be done to the units `[first, end)`.
#[derive(Debug)]
pub(super) struct Part {
    pub first: u32,
    pub end: u32,
    pub key: RequestKey,
    pub content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// These bytes at this offset in the chunk, with the checksum of each piece, checked.
    Data { offset: u32, data: Bytes, crcs: Vec<u32> },
    /// Zeros in the bytes `[offset, end)` of one unit.
    Zeros { offset: u32, end: u32 },
    /// All units become holes.
    Holes,
}

/// Whole units as they are after a write.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pub crcs: Vec<u32>,
    pub payload: Bytes,
    pub holes: bool,
}

/// Returns the whole units after a write, given those that it covers only in part: the caller's own bytes and checksums
/// where it covers units.
pub(super) fn image_of(part: &Part, edges: &[(u32, UnitState, Bytes)]) -> Image {
    let unit_bytes = UNIT_SIZE as usize;
    let units = (part.end - part.first) as usize;
    let start = part.first * UNIT_SIZE;
    let zeros;
    let (offset, data, mut crcs) = match &part.content {
        Content::Holes => return Image { holes: true, ..Image::default() },
        Content::Data { offset, data, crcs } if edges.is_empty() => {
            debug_assert_eq!(*offset, start);
            return Image { crcs: crcs.clone(), payload: data.clone(), holes: false };
        }
        Content::Data { offset, data, crcs } => (*offset, &data[..], crcs.clone()),
        // It reads as zeros already.
        Content::Zeros { .. } if edges.iter().all(|(_, state, _)| state.hole) => {
            return Image { holes: true, ..Image::default() };
        }
        Content::Zeros { offset, end } => {
            zeros = vec![0; (end - offset) as usize];
            (*offset, &zeros[..], vec![0; units])
        }
    };
    let mut image = vec![0; units * unit_bytes];
    for (unit, _, content) in edges {
        let at = (unit - part.first) as usize * unit_bytes;
        image[at..at + unit_bytes].copy_from_slice(content);
    }
    let head = (offset - start) as usize;
    image[head..head + data.len()].copy_from_slice(data);
    for (unit, _, _) in edges {
        let at = (unit - part.first) as usize;
        crcs[at] = crc32c::crc32c(&image[at * unit_bytes..(at + 1) * unit_bytes]);
    }
    Image { crcs, payload: image.into(), holes: false }
}
