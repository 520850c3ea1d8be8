//! Compressed bodies (`Content-Encoding`), decompressed within bounds.
//!
//! A few bytes can decompress to gigabytes, so no decoder here makes more than it was allowed, whatever the body says of itself. A whole
//! body at once needs no window with zstd.

use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use std::io::Read as _;

/// The codings that clients may use.
pub const SUPPORTED: &str = "gzip, deflate, zstd";
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
}

/// The coding of a body, if it has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentEncoding(Option<Coding>);

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
        let mut coding = None;
        for value in values {
            let text = str::from_utf8(value).map_err(|_| format!("\"{}\"", value.escape_ascii()))?;
            for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                let found = match name.to_ascii_lowercase().as_str() {
                    "identity" | "none" | "utf-8" | "utf8" | "iso-8859-1" | "us-ascii" | "ascii" | "8bit"
                    | "binary" => continue,
                    "gzip" | "x-gzip" => Coding::Gzip,
                    "deflate" => Coding::Deflate,
                    "zstd" => Coding::Zstd,
                    _ => return Err(format!("{name:?}")),
                };
                if coding.replace(found).is_some() {
                    return Err(format!("{text:?}, more than one coding,"));
                }
            }
        }
        Ok(Self(coding))
    }

    /// Whether the body comes as it is.
    pub fn is_identity(self) -> bool {
        self.0.is_none()
    }

    /// The decompressed body, which has `max` bytes at the most.
    pub fn decompress(self, body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
        match self.0 {
            None => Ok(body.to_vec()),
            Some(Coding::Gzip) => gzip(body, max),
            Some(Coding::Deflate) => deflate(body, max),
            Some(Coding::Zstd) => zstd(body, max),
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
    let mut output = Vec::with_capacity(max + 1);
    let status = decoder.decompress_vec(body, &mut output, FlushDecompress::Finish);
    let status = status.map_err(|_| DecompressError::Corrupt)?;
    if output.len() > max {
        return Err(DecompressError::TooLarge);
    }
    // Neither cut off nor with further bytes behind it.
    let complete = status == Status::StreamEnd && decoder.total_in() == body.len() as u64;
    output.shrink_to_fit();
    if complete { Ok(output) } else { Err(DecompressError::Corrupt) }
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

#[cfg(test)]
mod tests;
