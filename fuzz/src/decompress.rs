//! Compressed bodies.

use super::input::Input;
use cdrelay::ingress::decompress::{ContentEncoding, DecompressError};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use std::io::Write;

const CODINGS: [&str; 8] = ["gzip", "deflate", "zstd", "br", "gzip, gzip", "deflate, br", "br, zstd", "zstd, deflate"];
const BOUNDS: [usize; 8] = [0, 1, 100, 1000, 1 << 14, 1 << 16, 1 << 18, 1 << 20];

/// One byte selects the coding, one the bound; the rest is the compressed body, or a body to compress.
pub fn decompress(data: &[u8]) {
    let mut input = Input(data);
    let (coding, bound) = (input.byte(), input.byte());
    let body = input.0;
    let coding = CODINGS[usize::from(coding & 7)];
    let most = BOUNDS[usize::from(bound & 7)];
    let packing = ContentEncoding::parse([coding.as_bytes()].into_iter()).expect("the coding is known");
    if let Ok(unpacked) = packing.decompress(body, most) {
        assert!(unpacked.len() <= most, "{} of {most} bytes", unpacked.len());
        // The bound decides only whether there is a result.
        assert_eq!(packing.decompress(body, most + 1).as_ref(), Ok(&unpacked));
        if let Some(less) = unpacked.len().checked_sub(1) {
            assert_eq!(packing.decompress(body, less), Err(DecompressError::TooLarge));
        }
    }
    if let Some(packed) = pack(coding, body) {
        assert_eq!(packing.decompress(&packed, body.len()).as_deref(), Ok(body));
        let half = packed.get(..packed.len() / 2).unwrap_or_default();
        assert!(packing.decompress(half, body.len()).is_err(), "half of it is taken for all of it");
    }
    let _ = ContentEncoding::parse([body].into_iter());
}

fn pack(coding: &str, body: &[u8]) -> Option<Vec<u8>> {
    match coding {
        "gzip" => {
            let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
            writer.write_all(body).ok()?;
            writer.finish().ok()
        }
        "deflate" => {
            let mut writer = ZlibEncoder::new(Vec::new(), Compression::fast());
            writer.write_all(body).ok()?;
            writer.finish().ok()
        }
        "zstd" => {
            let mut packed = Vec::with_capacity(zstd_safe::compress_bound(body.len()));
            zstd_safe::compress(&mut packed, body, 1).ok()?;
            Some(packed)
        }
        _ => None,
    }
}
