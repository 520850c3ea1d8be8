//! The checksum of any part of a file, at a cost that does not depend on how long the part is.
//!
//! Whatever looks like a record tells its own length. To read and sum up all that a damaged file claims would take hours for 16 MiB of
//! claims made up for that. From the checksums of two beginnings of a file follows that of what lies between them, and those of
//! the beginnings take one pass over the file.

use super::disk::DiskFile;
use std::io;
use std::ops::Range;

/// Bytes between one beginning whose checksum is kept and the next.
const BLOCK: u64 = 1 << 10;
/// How many blocks are read at once.
const AT_ONCE: u64 = 256;

/// Polynomials over GF(2) modulo that of CRC-32C, the coefficient of x⁰ in the highest bit.
const ONE: u32 = 1 << 31;
const CRC32C: u32 = 0x82F6_3B78;
/// What a checksum is multiplied by when a block follows: x to the number of its bits.
const BY_BLOCK: u32 = {
    let (mut power, mut bits) = (ONE >> 1, 1);
    while bits < 8 * BLOCK {
        power = product(power, power);
        bits *= 2;
    }
    power
};

/// What is known of a file as it was when it was first asked about.
#[derive(Debug, Default)]
pub struct Sums(Vec<Beginning>);

/// So many blocks from the beginning of the file.
#[derive(Clone, Copy, Debug)]
struct Beginning {
    sum: u32,
    /// What a checksum is multiplied by when so many blocks follow.
    factor: u32,
}

impl Sums {
    /// The CRC-32C of this part of the file; `None` if the file ends before.
    pub fn of(&mut self, file: &dyn DiskFile, part: Range<u64>) -> io::Result<Option<u32>> {
        let blocks = part.start.div_ceil(BLOCK)..part.end / BLOCK;
        if blocks.is_empty() {
            return Ok(read(file, part)?.map(|bytes| crc32c::crc32c(&bytes)));
        }
        if !self.reach(file, blocks.end)? {
            return Ok(None);
        }
        let Some(head) = read(file, part.start..blocks.start * BLOCK)? else { return Ok(None) };
        let Some(rest) = read(file, blocks.end * BLOCK..part.end)? else { return Ok(None) };
        let known = |blocks: u64| self.0.get(usize::try_from(blocks).ok()?);
        let known = (known(blocks.start), known(blocks.end), known(blocks.end - blocks.start));
        let (Some(before), Some(whole), Some(between)) = known else { return Ok(None) };
        let sum = product(crc32c::crc32c(&head) ^ before.sum, between.factor) ^ whole.sum;
        Ok(Some(crc32c::crc32c_append(sum, &rest)))
    }

    /// Reads on until so many blocks are known. Says whether there are so many.
    fn reach(&mut self, file: &dyn DiskFile, blocks: u64) -> io::Result<bool> {
        let mut last = *self.0.last().unwrap_or(&Beginning { sum: 0, factor: ONE });
        if self.0.is_empty() {
            self.0.push(last);
        }
        loop {
            let known = self.0.len() as u64 - 1;
            if known >= blocks {
                return Ok(true);
            }
            let until = blocks.min(known + AT_ONCE);
            let Some(bytes) = read(file, known * BLOCK..until * BLOCK)? else { return Ok(false) };
            for block in bytes.chunks_exact(BLOCK as usize) {
                let sum = crc32c::crc32c_append(last.sum, block);
                last = Beginning { sum, factor: product(last.factor, BY_BLOCK) };
                self.0.push(last);
            }
        }
    }
}

/// These bytes of the file, if it has them all.
fn read(file: &dyn DiskFile, part: Range<u64>) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; (part.end - part.start) as usize];
    let whole = bytes.is_empty() || file.read_at(&mut bytes, part.start)? == bytes.len();
    Ok(whole.then_some(bytes))
}

const fn product(mut one: u32, mut other: u32) -> u32 {
    let mut product = 0;
    while one != 0 {
        if one & ONE != 0 {
            product ^= other;
        }
        one <<= 1;
        other = (other >> 1) ^ (CRC32C & (other & 1).wrapping_neg());
    }
    product
}

#[cfg(test)]
mod tests {
    use super::super::disk::simulated::Machine;
    use super::*;

    #[test]
    fn the_sum_of_any_part_is_what_summing_it_up_gives() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let size = 700 * BLOCK as usize + random.usize(0..BLOCK as usize);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(size).collect();
        let machine = Machine::new(0);
        machine.put("file", &bytes);
        let file = machine.mount().open("file").unwrap();
        let (whole, edges) = (size as u64, [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK]);
        let mut sums = Sums::default();
        let mut check = |part: Range<u64>| {
            let expected = crc32c::crc32c(&bytes[part.start as usize..part.end as usize]);
            assert_eq!(sums.of(&*file, part.clone()).unwrap(), Some(expected), "{part:?}");
        };
        for start in edges {
            edges.into_iter().filter(|end| *end >= start).for_each(|end| check(start..end));
        }
        for _ in 0..300 {
            let start = random.u64(0..whole);
            check(start..random.u64(start..=whole));
        }
        check(0..whole);
        for start in [0, whole - 1, whole, whole + 5 * BLOCK] {
            assert_eq!(sums.of(&*file, start..whole + 6 * BLOCK).unwrap(), None, "there is no more");
        }
    }
}
