//! Compressed bodies (`Content-Encoding`), unpacked within bounds.
//!
//! A few bytes can unpack to gigabytes. So nothing here makes more than it was allowed, whatever the body says of itself, and
//! what a decoder needs beside its output has a bound that is known beforehand: [`Packing::memory`]. The windows of zstd and
//! brotli, up to 2 GiB and 16 MiB at the sender's choice, are no part of it: a whole body is there, and unpacks into one piece of memory
//! that zstd needs no window beside, and brotli none that is larger than what the body comes to.

use crate::http;
use brotli_decompressor::{
    Allocator, BrotliDecoderErrorCode, BrotliDecompressStream, BrotliResult, BrotliState, SliceWrapper, StandardAlloc,
};
use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use std::cell::Cell;
use std::io::Read;
use std::rc::Rc;

/// What clients are told.
pub const TAKEN: &str = "gzip, deflate, zstd, br";
/// Nobody packs more often, and each time multiplies what a byte can ask for.
const MOST: usize = 2;
/// What decoders need beside their output: tables and, of gzip and deflate, a window.
const TABLES: usize = 4 << 20;
const SMALL_TABLES: usize = 256 << 10;
/// `ZSTD_error_dstSize_tooSmall` of `zstd_errors.h`, as functions return it.
const NO_ROOM: usize = 70_usize.wrapping_neg();

/// What a frame of zstd begins with (RFC 8878, 3.1.1 and 3.1.2).
const ZSTD: u32 = 0xFD2F_B528;
const ZSTD_SKIPPABLE: u32 = 0x184D_2A50;
const ZSTD_SKIPPABLE_END: u32 = 0x184D_2A5F;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Zstd,
    Brotli,
}

/// How a body is packed: the codings in the order in which they were applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing(Vec<Coding>);

/// Why a body cannot be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackError {
    /// It comes to more than it may.
    TooLarge,
    /// It is damaged, incomplete, or packed in another way than it says.
    Broken,
}

impl Packing {
    /// What the values of `Content-Encoding` say, or what of it is not taken.
    pub fn of<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Self, String> {
        let mut codings = Vec::new();
        for value in values {
            let text = http::text(value).ok_or_else(|| format!("\"{}\"", value.escape_ascii()))?;
            for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                match name.to_ascii_lowercase().as_str() {
                    "identity" => {}
                    "gzip" | "x-gzip" => codings.push(Coding::Gzip),
                    "deflate" => codings.push(Coding::Deflate),
                    "zstd" => codings.push(Coding::Zstd),
                    "br" => codings.push(Coding::Brotli),
                    _ => return Err(format!("{name:?}")),
                }
                if codings.len() > MOST {
                    return Err(format!("{text:?}, more than {MOST} codings"));
                }
            }
        }
        Ok(Self(codings))
    }

    /// Whether there is nothing to unpack.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes unpacking to `most` bytes may take, the result included.
    pub fn memory(&self, most: usize) -> usize {
        let beside = |coding: &Coding| match coding {
            Coding::Brotli => brotli_memory(most),
            Coding::Gzip | Coding::Deflate | Coding::Zstd => SMALL_TABLES,
        };
        // Memory that grows is there twice for a moment.
        (1 + self.0.len()) * most + self.0.iter().map(beside).max().unwrap_or_default()
    }

    /// The body, which comes to `most` bytes at the most, also on the way there.
    pub fn unpack(&self, packed: &[u8], most: usize) -> Result<Vec<u8>, UnpackError> {
        let mut outermost_first = self.0.iter().rev();
        let Some(outermost) = outermost_first.next() else { return Ok(packed.to_vec()) };
        let unpacked = outermost.unpack(packed, most)?;
        outermost_first.try_fold(unpacked, |packed, coding| coding.unpack(&packed, most))
    }
}

impl Coding {
    fn unpack(self, packed: &[u8], most: usize) -> Result<Vec<u8>, UnpackError> {
        match self {
            Self::Gzip => gzip(packed, most),
            Self::Deflate => deflate(packed, most),
            Self::Zstd => zstd(packed, most),
            Self::Brotli => brotli(packed, most),
        }
    }
}

/// Room for more, up to one byte beyond what is allowed, which tells that there is too much.
fn grow(output: &mut Vec<u8>, packed: &[u8], most: usize) -> Result<(), UnpackError> {
    if output.len() > most {
        return Err(UnpackError::TooLarge);
    }
    let first = (4 * packed.len()).clamp(1 << 10, 1 << 20);
    output.reserve_exact(first.max(2 * output.len()).min(most + 1) - output.len());
    Ok(())
}

/// One or several members, as the format allows.
fn gzip(packed: &[u8], most: usize) -> Result<Vec<u8>, UnpackError> {
    let mut output = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let read = MultiGzDecoder::new(packed).take(limit).read_to_end(&mut output);
    if output.len() > most {
        return Err(UnpackError::TooLarge);
    }
    read.map(|_| output).map_err(|_| UnpackError::Broken)
}

/// In the frame of zlib, as RFC 9110 says, or without, as some senders have it.
fn deflate(packed: &[u8], most: usize) -> Result<Vec<u8>, UnpackError> {
    let framed = matches!(packed, [first, second, ..]
        if first & 0xf == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31));
    let mut decoder = Decompress::new(framed);
    let mut output = Vec::new();
    loop {
        if output.len() == output.capacity() {
            grow(&mut output, packed, most)?;
        }
        let before = (decoder.total_in(), decoder.total_out());
        let rest = usize::try_from(decoder.total_in()).ok().and_then(|read| packed.get(read..)).unwrap_or_default();
        let done = decoder.decompress_vec(rest, &mut output, FlushDecompress::None);
        let at_end = decoder.total_in() == packed.len() as u64;
        match done.map_err(|_| UnpackError::Broken)? {
            _ if output.len() > most => return Err(UnpackError::TooLarge),
            Status::StreamEnd if at_end => return Ok(output),
            Status::StreamEnd => return Err(UnpackError::Broken),
            _ if before != (decoder.total_in(), decoder.total_out()) => {}
            // There is room, and it wants to read more.
            _ => return Err(UnpackError::Broken),
        }
    }
}

/// One or several frames.
fn zstd(packed: &[u8], most: usize) -> Result<Vec<u8>, UnpackError> {
    let size = zstd_safe::get_frame_content_size(packed).map_err(|_| UnpackError::Broken)?;
    let first = size.map_or(usize::MAX, |size| usize::try_from(size).unwrap_or(usize::MAX));
    if size.is_some() && first > most {
        return Err(UnpackError::TooLarge);
    }
    let frames = zstd_frames(packed)?;
    // Memory that is not written to is not taken from the system.
    let mut output = Vec::with_capacity(if frames == 1 { first.min(most) } else { most });
    let mut decoder = zstd_safe::DCtx::try_create().ok_or(UnpackError::TooLarge)?;
    match decoder.decompress(&mut output, packed) {
        Ok(_) => {
            output.shrink_to_fit();
            Ok(output)
        }
        Err(NO_ROOM) => Err(UnpackError::TooLarge),
        Err(_) => Err(UnpackError::Broken),
    }
}

/// How many frames there are, all of the format that RFC 8878 tells: the library reads those of its drafts too, with decoders that
/// nobody has any use for.
fn zstd_frames(packed: &[u8]) -> Result<usize, UnpackError> {
    let (mut frames, mut rest) = (0, packed);
    while !rest.is_empty() {
        let magic = rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        if !matches!(magic, Some(ZSTD | ZSTD_SKIPPABLE..=ZSTD_SKIPPABLE_END)) {
            return Err(UnpackError::Broken);
        }
        let size = zstd_safe::find_frame_compressed_size(rest).map_err(|_| UnpackError::Broken)?;
        (frames, rest) = (frames + 1, rest.get(size..).unwrap_or_default());
    }
    Ok(frames)
}

fn brotli(packed: &[u8], most: usize) -> Result<Vec<u8>, UnpackError> {
    let memory = Bounded { left: Rc::new(Cell::new(brotli_memory(most))) };
    let mut state = BrotliState::new_strict(memory.clone(), memory.clone(), memory);
    let (mut unread, mut read, mut written) = (packed.len(), 0, 0);
    let mut output = Vec::new();
    loop {
        grow(&mut output, packed, most)?;
        output.resize(output.capacity(), 0);
        let (mut room, mut end, mut total) = (output.len() - written, written, 0);
        let result = BrotliDecompressStream(
            &mut unread,
            &mut read,
            packed,
            &mut room,
            &mut end,
            &mut output,
            &mut total,
            &mut state,
        );
        written = end;
        match result {
            _ if written > most => return Err(UnpackError::TooLarge),
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultSuccess if unread == 0 => {
                output.truncate(written);
                return Ok(output);
            }
            BrotliResult::ResultFailure if out_of_memory(&state.error_code) => return Err(UnpackError::TooLarge),
            _ => return Err(UnpackError::Broken),
        }
    }
}

/// A part of a body is announced with its size, and the window is made no larger than that asks for: the size of the body, rounded up,
/// and half of it once more while it grows.
fn brotli_memory(most: usize) -> usize {
    2 * most.next_power_of_two() + TABLES
}

fn out_of_memory(error: &BrotliDecoderErrorCode) -> bool {
    use BrotliDecoderErrorCode::*;
    matches!(
        error,
        BROTLI_DECODER_ERROR_ALLOC_CONTEXT_MODES
            | BROTLI_DECODER_ERROR_ALLOC_TREE_GROUPS
            | BROTLI_DECODER_ERROR_ALLOC_CONTEXT_MAP
            | BROTLI_DECODER_ERROR_ALLOC_RING_BUFFER_1
            | BROTLI_DECODER_ERROR_ALLOC_RING_BUFFER_2
            | BROTLI_DECODER_ERROR_ALLOC_BLOCK_TYPE_TREES
    )
}

/// Hands out no more than so many bytes.
#[derive(Clone)]
struct Bounded {
    left: Rc<Cell<usize>>,
}

impl<T: Clone + Default> Allocator<T> for Bounded {
    type AllocatedMemory = <StandardAlloc as Allocator<T>>::AllocatedMemory;

    fn alloc_cell(&mut self, len: usize) -> Self::AllocatedMemory {
        match self.left.get().checked_sub(len.saturating_mul(size_of::<T>())) {
            None => Self::AllocatedMemory::default(),
            Some(left) => {
                self.left.set(left);
                StandardAlloc::default().alloc_cell(len)
            }
        }
    }

    fn free_cell(&mut self, cell: Self::AllocatedMemory) {
        self.left.set(self.left.get() + size_of_val(cell.slice()));
    }
}

#[cfg(test)]
mod tests;
