use super::*;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use std::io::Write;

const NAMES: [&str; 4] = ["gzip", "deflate", "zstd", "br"];
const MIB: usize = 1 << 20;

fn packing(value: &str) -> ContentEncoding {
    ContentEncoding::parse([value.as_bytes()].into_iter()).unwrap()
}

fn pack(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    match name {
        "gzip" => {
            let mut writer = GzEncoder::new(&mut packed, Compression::best());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap();
        }
        "deflate" => {
            let mut writer = ZlibEncoder::new(&mut packed, Compression::best());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap();
        }
        "zstd" => {
            packed.reserve(zstd_safe::compress_bound(bytes.len()));
            zstd_safe::compress(&mut packed, bytes, 3).unwrap();
        }
        "br" => {
            let parameters = brotli::enc::BrotliEncoderParams { quality: 4, ..Default::default() };
            brotli::BrotliCompress(&mut &bytes[..], &mut packed, &parameters).unwrap();
        }
        _ => unreachable!(),
    }
    packed
}

/// Does not compress well, does not repeat within any window, and is the same in every run.
fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..length).map(|_| random.alphanumeric() as u8).collect()
}

#[test]
fn what_was_packed_comes_out() {
    for name in NAMES {
        for bytes in [Vec::new(), b"{\"a\":1}".to_vec(), vec![b' '; 3 * MIB], noise(MIB)] {
            let packed = pack(name, &bytes);
            assert!(packing(name).decompress(&packed, bytes.len()).as_ref() == Ok(&bytes), "{name}, {}", bytes.len());
        }
    }
    let mut raw = DeflateEncoder::new(Vec::new(), Compression::fast());
    raw.write_all(b"{\"a\":1}").unwrap();
    assert_eq!(packing("deflate").decompress(&raw.finish().unwrap(), 7).unwrap(), b"{\"a\":1}");
}

/// The library would read it: a frame of zstd 0.7 with one block, stored as it is, and the empty one behind it.
#[test]
fn formats_of_zstd_before_the_first_are_broken() {
    let old = |magic: u8| [&[magic, 0xB5, 0x2F, 0xFD, 0x20, 2, 0x40, 0, 2][..], b"{}", &[0xC0, 0, 0]].concat();
    let new = pack("zstd", b"{}");
    let skippable = [0x5A, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3].to_vec();
    for packed in [new.clone(), [&new[..], &skippable].concat(), [&skippable[..], &new].concat()] {
        assert_eq!(packing("zstd").decompress(&packed, 100).as_deref(), Ok(&b"{}"[..]));
    }
    for packed in [old(0x27), [&new[..], &old(0x27)].concat(), [&skippable[..], &old(0x27)].concat(), old(0x25)] {
        assert_eq!(packing("zstd").decompress(&packed, 100), Err(DecompressError::Corrupt), "{packed:x?}");
    }
}

#[test]
fn codings_come_off_in_their_order_and_several_pieces_are_one() {
    let event = b"{\"a\":1}";
    for first in NAMES {
        for second in NAMES {
            let packed = pack(second, &pack(first, event));
            let unpacked = packing(&format!("{first} ,Identity,, {second}")).decompress(&packed, 200);
            assert_eq!(unpacked.as_deref(), Ok(&event[..]), "{first}, {second}");
        }
    }
    for name in ["gzip", "zstd"] {
        let two = [pack(name, b"{\"a\":"), pack(name, b"1}")].concat();
        assert_eq!(packing(name).decompress(&two, 7).as_deref(), Ok(&event[..]));
        assert_eq!(packing(name).decompress(&two, 6), Err(DecompressError::TooLarge));
    }
}

#[test]
fn only_known_codings_are_taken_and_no_more_than_two() {
    for value in ["", "identity", "IDENTITY, identity"] {
        assert!(packing(value).is_identity(), "{value}");
    }
    assert_eq!(packing("X-GZIP"), packing("gzip"));
    for value in ["compress", "gzip, aes128gcm", "gzip;q=1", "gzip, br, gzip"] {
        ContentEncoding::parse([value.as_bytes()].into_iter()).unwrap_err();
    }
    ContentEncoding::parse([&b"gzip"[..], b"br", b"zstd"].into_iter()).unwrap_err();
}

#[test]
fn one_byte_beyond_the_bound_is_too_much() {
    for name in NAMES {
        for bytes in [vec![0; 1000], vec![0; 3 * MIB], noise(MIB / 2)] {
            let packed = pack(name, &bytes);
            for most in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                assert_eq!(packing(name).decompress(&packed, most), Err(DecompressError::TooLarge), "{name}, {most}");
            }
        }
        // Also on the way.
        let twice = pack(name, &pack(name, &vec![0; 4 * MIB]));
        assert_eq!(
            packing(&format!("{name}, {name}")).decompress(&twice, 10),
            Err(DecompressError::TooLarge),
            "{name}"
        );
    }
}

#[test]
fn damage_anywhere_and_a_missing_or_further_byte_are_noticed_or_harmless() {
    let bytes = noise(300);
    for name in NAMES {
        let packed = pack(name, &bytes);
        for end in 1..packed.len() {
            assert_eq!(packing(name).decompress(&packed[..end], 1000), Err(DecompressError::Corrupt), "{name}, {end}");
        }
        assert_eq!(
            packing(name).decompress(&[&packed[..], b"x"].concat(), 1000),
            Err(DecompressError::Corrupt),
            "{name}"
        );
        assert_eq!(packing(name).decompress(b"{\"a\":1}", 1000), Err(DecompressError::Corrupt), "{name}");
        for at in 0..packed.len() * 8 {
            let mut damaged = packed.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            if let Ok(unpacked) = packing(name).decompress(&damaged, 1000) {
                assert!(unpacked.len() <= 1000, "{name}, bit {at}");
            }
        }
    }
}
