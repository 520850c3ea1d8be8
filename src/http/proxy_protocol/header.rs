//! The header itself, as <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt> has it.
//!
//! Decoded here, as none of the crates for it does all that the specification asks of who receives it: to take nothing else for a header of
//! version 1, to verify the checksum, and to leave alone what a header of version 2 says of something that is no TCP connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What version 1 begins with, and version 2.
const TEXT: &[u8] = b"PROXY ";
const BINARY: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const LINE: usize = 107;
/// What version 2 has before the addresses: its beginning, version and command, family and protocol, the length of the rest.
const FIXED: usize = 16;
/// The most that a header may take. The addresses need 216 bytes, further fields little more; nginx takes as much.
const MOST: usize = 4096;
/// The further field with the checksum of the header.
const CRC32C: u8 = 3;

/// Why the bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They begin like something else.
    Missing,
    /// They only begin like one.
    Invalid(&'static str),
}

/// How many of the bytes that have come belong to a header that they begin with. What follows is the client's own.
pub fn extent(bytes: &[u8]) -> usize {
    let whole = if bytes.first() == BINARY.first() {
        match bytes.get(FIXED - 2..FIXED) {
            Some(length) => FIXED + number(length),
            None => FIXED,
        }
    } else {
        bytes.iter().position(|byte| *byte == b'\n').map_or(LINE, |end| end + 1).min(LINE)
    };
    whole.min(bytes.len())
}

/// The client's address that a header tells, `Some(None)` if it tells none, and `None` if there has to come more of it. There must be
/// nothing behind it.
pub fn decode(header: &[u8]) -> Result<Option<Option<SocketAddr>>, Fault> {
    if let Some(line) = header.strip_prefix(TEXT) {
        text(line)
    } else if let Some(rest) = header.strip_prefix(BINARY) {
        binary(header, rest)
    } else if TEXT.starts_with(header) || BINARY.starts_with(header) {
        Ok(None)
    } else {
        Err(Fault::Missing)
    }
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n`
fn text(line: &[u8]) -> Result<Option<Option<SocketAddr>>, Fault> {
    const FAULT: Fault = Fault::Invalid("the line is not as version 1 has it");
    if !line.ends_with(b"\n") {
        return if line.len() < LINE - TEXT.len() { Ok(None) } else { Err(Fault::Invalid("the line is too long")) };
    }
    let line = line.strip_suffix(b"\r\n").and_then(|line| str::from_utf8(line).ok()).ok_or(FAULT)?;
    let words: Vec<&str> = line.split(' ').collect();
    let (source, destination, ports) = match words.as_slice() {
        // Whatever else it says is to be ignored.
        ["UNKNOWN", ..] => return Ok(Some(None)),
        ["TCP4", source, destination, ports @ ..] => {
            let address = |text: &str| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
            (address(source), address(destination), ports)
        }
        ["TCP6", source, destination, ports @ ..] => {
            let address = |text: &str| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
            (address(source), address(destination), ports)
        }
        _ => return Err(FAULT),
    };
    let [source_port, destination_port] = ports else { return Err(FAULT) };
    match (source, destination, port(source_port), port(destination_port)) {
        (Some(source), Some(_), Some(port), Some(_)) => Ok(Some(Some(SocketAddr::new(source, port)))),
        _ => Err(FAULT),
    }
}

/// A number without sign and without zeros before it.
fn port(text: &str) -> Option<u16> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|_| plain)
}

/// Version 2. `rest` is what stands behind its beginning.
fn binary(header: &[u8], rest: &[u8]) -> Result<Option<Option<SocketAddr>>, Fault> {
    let [command, family, length @ ..] = rest else { return Ok(None) };
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Fault::Invalid("version or command is unknown")),
    };
    let Some((length, block)) = length.split_at_checked(2) else { return Ok(None) };
    if FIXED + number(length) > MOST {
        return Err(Fault::Invalid("the header is too long"));
    }
    if block.len() < number(length) {
        return Ok(None);
    }
    // The proxy's own connection, to see whether we are there.
    if local {
        return Ok(Some(None));
    }
    // How long the two addresses and ports are, and whether they are of a TCP connection.
    let (size, stream) = match family {
        0x00 => return Ok(Some(None)),
        0x11 | 0x12 => (12, *family == 0x11),
        0x21 | 0x22 => (36, *family == 0x21),
        0x31 | 0x32 => (216, false),
        _ => return Err(Fault::Invalid("address family or protocol is unknown")),
    };
    let Some((addresses, fields)) = block.split_at_checked(size) else {
        return Err(Fault::Invalid("the addresses are not complete"));
    };
    verify(header, fields)?;
    Ok(Some(source(addresses).filter(|_| stream)))
}

/// The first of two addresses, and the first of the two ports behind them.
fn source(addresses: &[u8]) -> Option<SocketAddr> {
    if let Some((source, rest)) = addresses.split_first_chunk::<4>().filter(|_| addresses.len() == 12) {
        return Some(SocketAddr::new(Ipv4Addr::from(*source).into(), number(rest.get(4..6)?).try_into().ok()?));
    }
    let (source, rest) = addresses.split_first_chunk::<16>().filter(|_| addresses.len() == 36)?;
    Some(SocketAddr::new(Ipv6Addr::from(*source).into(), number(rest.get(16..18)?).try_into().ok()?))
}

/// Goes through the further fields, and compares the checksum if there is one. It was made with zeros in its own place.
fn verify(header: &[u8], mut fields: &[u8]) -> Result<(), Fault> {
    while let Some((kind, rest)) = fields.split_first() {
        let field = rest.split_at_checked(2).and_then(|(length, rest)| rest.split_at_checked(number(length)));
        let Some((value, others)) = field else { return Err(Fault::Invalid("a further field is not complete")) };
        if *kind == CRC32C {
            let before = header.len() - others.len() - value.len();
            let sum = crc32c::crc32c(header.get(..before).unwrap_or_default());
            let sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, &[0; 4]), others);
            if value != sum.to_be_bytes() {
                return Err(Fault::Invalid("the checksum does not match"));
            }
        }
        fields = others;
    }
    Ok(())
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests;
