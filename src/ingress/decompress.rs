//! Compressed bodies (`Content-Encoding`), decompressed within bounds.
//!
//! A few bytes can decompress to gigabytes, so no decoder here makes more than it was allowed, whatever the body says of itself. The
//! window of brotli has 16 MiB at the most, and the caller decompresses one large body at a time; a whole body at once needs no window
//! with zstd.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use std::io::Read as _;

/// The codings that clients may use.
pub const SUPPORTED: &str = "gzip, deflate, zstd, br";
/// Codings of one body. No sender uses more, and each one multiplies the size that a byte can expand to.
const MAX_CODINGS: usize = 2;
/// Bytes that are decompressed at a time.
const CHUNK: usize = 32 << 10;
/// `ZSTD_error_dstSize_tooSmall` of `zstd_errors.h`, as functions return it.
const DESTINATION_TOO_SMALL: usize = 70_usize.wrapping_neg();
/// The first bytes of a zstd frame (RFC 8878, 3.1.1 and 3.1.2).
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

/// The codings of a body, in the order in which they were applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContentEncoding(Vec<Coding>);

/// Why a body cannot be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecompressError {
    /// It comes to more than it may.
    TooLarge,
    /// It is damaged, incomplete, or encoded in another way.
    Corrupt,
}

impl ContentEncoding {
    /// Parses the values of `Content-Encoding`. Fails with the part that is not supported. Some senders name a character set or `none`
    /// there, which is no coding.
    pub fn parse<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Self, String> {
        let mut codings = Vec::new();
        for value in values {
            let text = str::from_utf8(value).map_err(|_| format!("\"{}\"", value.escape_ascii()))?;
            for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                match name.to_ascii_lowercase().as_str() {
                    "identity" | "none" | "utf-8" | "utf8" | "iso-8859-1" | "us-ascii" | "ascii" | "8bit"
                    | "binary" => {}
                    "gzip" | "x-gzip" => codings.push(Coding::Gzip),
                    "deflate" => codings.push(Coding::Deflate),
                    "zstd" => codings.push(Coding::Zstd),
                    "br" => codings.push(Coding::Brotli),
                    _ => return Err(format!("{name:?}")),
                }
                if codings.len() > MAX_CODINGS {
                    return Err(format!("{text:?}, more than {MAX_CODINGS} codings,"));
                }
            }
        }
        Ok(Self(codings))
    }

    /// Whether the body comes as it is.
    pub fn is_identity(&self) -> bool {
        self.0.is_empty()
    }

    /// The decompressed body. It has `max` bytes at the most, after the first of two codings too.
    pub fn decompress(&self, body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
        let mut outermost_first = self.0.iter().rev();
        let Some(outermost) = outermost_first.next() else { return Ok(body.to_vec()) };
        let decompressed = outermost.decompress(body, max)?;
        outermost_first.try_fold(decompressed, |body, coding| coding.decompress(&body, max))
    }
}

impl Coding {
    fn decompress(self, body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
        match self {
            Self::Gzip => gzip(body, max),
            Self::Deflate => deflate(body, max),
            Self::Zstd => zstd(body, max),
            Self::Brotli => brotli(body, max),
        }
    }
}

/// One or several members, as the format allows.
fn gzip(body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
    let mut output = Vec::new();
    let read = MultiGzDecoder::new(body).take(max as u64 + 1).read_to_end(&mut output);
    if output.len() > max {
        return Err(DecompressError::TooLarge);
    }
    read.map(|_| output).map_err(|_| DecompressError::Corrupt)
}

/// In the frame of zlib, as RFC 9110 says, or without it, as some senders do.
fn deflate(body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
    let framed = matches!(body, [first, second, ..]
        if first & 0xf == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31));
    let mut decoder = Decompress::new(framed);
    let (mut output, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    loop {
        let (read, written) = (decoder.total_in(), decoder.total_out());
        let rest = usize::try_from(read).ok().and_then(|read| body.get(read..)).unwrap_or_default();
        let status =
            decoder.decompress(rest, &mut chunk, FlushDecompress::None).map_err(|_| DecompressError::Corrupt)?;
        let made = (decoder.total_out() - written) as usize;
        output.extend_from_slice(chunk.get(..made).unwrap_or_default());
        let at_end = decoder.total_in() == body.len() as u64;
        match status {
            _ if output.len() > max => return Err(DecompressError::TooLarge),
            Status::StreamEnd if at_end => return Ok(output),
            Status::StreamEnd => return Err(DecompressError::Corrupt),
            // It wants to read more, and there is no more.
            _ if made == 0 && decoder.total_in() == read => return Err(DecompressError::Corrupt),
            _ => {}
        }
    }
}

/// One or several frames.
fn zstd(body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
    refuse_legacy_frames(body)?;
    // Memory that is not written to is not taken from the system.
    let mut output = Vec::with_capacity(max);
    let mut decoder = zstd_safe::DCtx::try_create().ok_or(DecompressError::TooLarge)?;
    match decoder.decompress(&mut output, body) {
        Ok(_) => {
            output.shrink_to_fit();
            Ok(output)
        }
        Err(DESTINATION_TOO_SMALL) => Err(DecompressError::TooLarge),
        Err(_) => Err(DecompressError::Corrupt),
    }
}

/// The library reads the formats before RFC 8878 too, with decoders that no sender needs and that few have tested.
fn refuse_legacy_frames(mut body: &[u8]) -> Result<(), DecompressError> {
    loop {
        let magic = body.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        if !matches!(magic, Some(ZSTD | ZSTD_SKIPPABLE..=ZSTD_SKIPPABLE_END)) {
            return Err(DecompressError::Corrupt);
        }
        let size = zstd_safe::find_frame_compressed_size(body).map_err(|_| DecompressError::Corrupt)?;
        body = body.get(size..).unwrap_or_default();
        if body.is_empty() {
            return Ok(());
        }
    }
}

fn brotli(body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
    let allocator = StandardAlloc::default;
    // Strict: without the extension for windows of more than 16 MiB.
    let mut state = BrotliState::new_strict(allocator(), allocator(), allocator());
    let (mut unread, mut read, mut total) = (body.len(), 0, 0);
    let (mut output, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    loop {
        let (mut room, mut made) = (chunk.len(), 0);
        let result = BrotliDecompressStream(
            &mut unread,
            &mut read,
            body,
            &mut room,
            &mut made,
            &mut chunk,
            &mut total,
            &mut state,
        );
        output.extend_from_slice(chunk.get(..made).unwrap_or_default());
        match result {
            _ if output.len() > max => return Err(DecompressError::TooLarge),
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultSuccess if unread == 0 => return Ok(output),
            _ => return Err(DecompressError::Corrupt),
        }
    }
}

#[cfg(test)]
mod tests;
