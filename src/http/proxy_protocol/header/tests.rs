use super::*;
use fastrand::Rng;

fn told(address: &str) -> Result<Option<Option<SocketAddr>>, Fault> {
    Ok(Some(Some(address.parse().unwrap())))
}

const NOBODY: Result<Option<Option<SocketAddr>>, Fault> = Ok(Some(None));

/// A header of version 2 with this length field, whatever is behind it.
fn raw(command: u8, family: u8, length: usize, block: &[u8]) -> Vec<u8> {
    [&BINARY[..], &[command, family], &(length as u16).to_be_bytes(), block].concat()
}

fn version2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    raw(command, family, block.len(), block)
}

/// The addresses and ports of a connection from `source`.
fn addresses(source: SocketAddr) -> (u8, Vec<u8>) {
    let ports = [source.port().to_be_bytes(), [1, 187]].concat();
    match source.ip() {
        IpAddr::V4(source) => (0x11, [&source.octets()[..], &[192, 0, 2, 2], &ports].concat()),
        IpAddr::V6(source) => (0x21, [&source.octets()[..], &[2; 16], &ports].concat()),
    }
}

fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

/// With the checksum at `at`, made as the specification says: over everything, with zeros in its place.
fn summed(mut header: Vec<u8>, at: usize) -> Vec<u8> {
    header[at..at + 4].fill(0);
    let sum = crc32c::crc32c(&header);
    header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The lines that the specification gives as examples and as the longest ones, and what else a proxy may send.
#[test]
fn lines_of_version_1_are_understood() {
    let any = "ffff:f...f:ffff ".repeat(5);
    let cases = [
        ("TCP4 255.255.255.255 255.255.255.255 65535 65535", told("255.255.255.255:65535")),
        ("TCP4 192.168.0.1 192.168.0.11 56324 443", told("192.168.0.1:56324")),
        ("TCP4 1.2.3.4 5.6.7.8 0 0", told("1.2.3.4:0")),
        (
            "TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
            told("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
        ),
        ("TCP6 2001:db8::1 ::1 4124 443", told("[2001:db8::1]:4124")),
        ("UNKNOWN", NOBODY),
        ("UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535", NOBODY),
        (&format!("UNKNOWN {any}"), NOBODY),
    ];
    for (line, expected) in cases {
        assert_eq!(decode(format!("PROXY {line}\r\n").as_bytes()), expected, "{line}");
    }
}

#[test]
fn nothing_else_is_a_line_of_version_1() {
    let lines = [
        "",
        "TCP4",
        "TCP4 1.2.3.4 5.6.7.8 1",
        "TCP4 1.2.3.4 5.6.7.8 1 2 3",
        "TCP4 1.2.3.4 5.6.7.8 1 2 ",
        "TCP4  1.2.3.4 5.6.7.8 1 2",
        " TCP4 1.2.3.4 5.6.7.8 1 2",
        "tcp4 1.2.3.4 5.6.7.8 1 2",
        "UDP4 1.2.3.4 5.6.7.8 1 2",
        "TCP4 1.2.3.4 ::1 1 2",
        "TCP4 ::1 ::1 1 2",
        "TCP6 1.2.3.4 5.6.7.8 1 2",
        "TCP6 ::1%eth0 ::1 1 2",
        "TCP4 1.2.3 5.6.7.8 1 2",
        "TCP4 01.2.3.4 5.6.7.8 1 2",
        "TCP4 256.2.3.4 5.6.7.8 1 2",
        "TCP4 1.2.3.4 5.6.7.8 65536 2",
        "TCP4 1.2.3.4 5.6.7.8 1 65536",
        "TCP4 1.2.3.4 5.6.7.8 +1 2",
        "TCP4 1.2.3.4 5.6.7.8 01 2",
        "TCP4 1.2.3.4 5.6.7.8 00 2",
        "TCP4 1.2.3.4 5.6.7.8 -1 2",
        "TCP4 1.2.3.4 5.6.7.8  2",
        "TCP4 1.2.3.4\t5.6.7.8 1 2",
        "TCP4 1.2.3.4 5.6.7.8 1 2\r",
        "TCP4 host 5.6.7.8 1 2",
        "UNKNOWNS",
        "LOCAL",
    ];
    for line in lines {
        let decoded = decode(format!("PROXY {line}\r\n").as_bytes());
        assert!(matches!(decoded, Err(Fault::Invalid(_))), "{decoded:?} for {line:?}");
    }
    assert!(matches!(decode(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n"), Err(Fault::Invalid(_))));
    assert!(matches!(decode(b"PROXY \xff\r\n"), Err(Fault::Invalid(_))));
    for other in [
        "POST / HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n",
        "proxy TCP4",
        "PROXYTCP4",
        "\x16\x03\x01",
        "\r\n\r\n\r\n",
        "\n",
        "x",
    ] {
        assert_eq!(decode(other.as_bytes()), Err(Fault::Missing), "{other:?}");
    }
}

#[test]
fn what_version_2_says_of_no_tcp_connection_tells_no_client() {
    let four = addresses("203.0.113.7:56324".parse().unwrap()).1;
    let six = addresses("[2001:db8::7]:56324".parse().unwrap()).1;
    assert_eq!(decode(&version2(0x21, 0x11, &four)), told("203.0.113.7:56324"));
    assert_eq!(decode(&version2(0x21, 0x21, &six)), told("[2001:db8::7]:56324"));
    for (family, block) in [(0x12, &four), (0x22, &six), (0x31, &vec![1; 216]), (0x32, &vec![1; 216])] {
        assert_eq!(decode(&version2(0x21, family, block)), NOBODY, "{family:#x}");
    }
    // Whatever a proxy sends along with these is to be skipped.
    for block in [&[][..], &four, &six, b"anything at all"] {
        assert_eq!(decode(&version2(0x21, 0x00, block)), NOBODY);
        for family in 0..=255 {
            assert_eq!(decode(&version2(0x20, family, block)), NOBODY, "{family:#x}");
        }
    }
}

#[test]
fn version_2_is_refused_where_it_is_not_as_specified() {
    let four = addresses("203.0.113.7:56324".parse().unwrap()).1;
    let six = addresses("[2001:db8::7]:56324".parse().unwrap()).1;
    let cases = [
        ("an unknown command", version2(0x22, 0x11, &four)),
        ("version 1 in binary", version2(0x11, 0x11, &four)),
        ("version 3", version2(0x31, 0x11, &four)),
        ("an unknown family", version2(0x21, 0x41, &four)),
        ("an unknown protocol", version2(0x21, 0x13, &four)),
        ("a family without protocol", version2(0x21, 0x10, &four)),
        ("half an address", version2(0x21, 0x11, &four[..11])),
        ("an address of the other family", version2(0x21, 0x21, &four)),
        ("no address", version2(0x21, 0x21, &[])),
        ("half a path", version2(0x21, 0x31, &[0; 215])),
        ("more than anybody needs", raw(0x21, 0x11, MOST - FIXED + 1, &[])),
        ("as much as can be said", raw(0x20, 0x00, 0xffff, &[])),
        ("half a field", version2(0x21, 0x11, &[&four[..], &[4, 0]].concat())),
        ("a field longer than the rest", version2(0x21, 0x21, &[&six[..], &[4, 0, 2, 0]].concat())),
        ("half a checksum", version2(0x21, 0x11, &[&four[..], &field(CRC32C, &[0; 2])].concat())),
    ];
    for (what, header) in cases {
        let decoded = decode(&header);
        assert!(matches!(decoded, Err(Fault::Invalid(_))), "{what}: {decoded:?}");
    }
    let full = [&four[..], &field(4, &vec![0; MOST - FIXED - 12 - 3])].concat();
    assert_eq!(decode(&version2(0x21, 0x11, &full)), told("203.0.113.7:56324"));
}

#[test]
fn a_checksum_is_verified() {
    let four = addresses("203.0.113.7:56324".parse().unwrap()).1;
    let fields = [field(1, b"h2"), field(CRC32C, &[0; 4]), field(2, b"cdr.example.com")].concat();
    let header = version2(0x21, 0x11, &[four, fields].concat());
    let sum = FIXED + 12 + 5 + 3;
    let header = summed(header, sum);
    // As a reckoning bit by bit, by the polynomial of RFC 3720, has it.
    assert_eq!(header[sum..sum + 4], [0x4b, 0xa7, 0xf0, 0xa3]);
    assert_eq!(decode(&header), told("203.0.113.7:56324"));
    for at in FIXED..header.len() {
        for bit in 0..8 {
            let mut damaged = header.clone();
            damaged[at] ^= 1 << bit;
            let decoded = decode(&damaged);
            // Where the checksum itself is made into something else, nothing is left to be verified.
            let kind = at == FIXED + 12 + 5;
            assert!(kind || matches!(decoded, Err(Fault::Invalid(_))), "bit {bit} of byte {at}: {decoded:?}");
        }
    }
}

/// Whatever a proxy may send, in pieces of any size, with the client's bytes right behind it.
#[test]
fn a_header_is_whole_at_its_end_and_not_before() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    for _ in 0..2000 {
        let six = random.bool();
        let ip = if six { IpAddr::V6(random.u128(..).into()) } else { IpAddr::V4(random.u32(..).into()) };
        let source = SocketAddr::new(ip, random.u16(..));
        let (header, expected) = match random.u8(..5) {
            0 => {
                let name = if six { "TCP6" } else { "TCP4" };
                (format!("PROXY {name} {ip} {ip} {} 443\r\n", source.port()).into_bytes(), Some(source))
            }
            1 => (b"PROXY UNKNOWN\r\n".to_vec(), None),
            2 => (version2(0x20, random.u8(..), &vec![7; random.usize(..300)]), None),
            more => {
                let (family, mut block) = addresses(source);
                for _ in 0..random.usize(..4) {
                    block.extend(field(random.u8(4..), &vec![random.u8(..); random.usize(..400)]));
                }
                if more == 3 {
                    (version2(0x21, family, &block), Some(source))
                } else {
                    let at = FIXED + block.len() + 3;
                    block.extend(field(CRC32C, &[0; 4]));
                    block.extend(field(4, &vec![0; random.usize(..40)]));
                    (summed(version2(0x21, family, &block), at), Some(source))
                }
            }
        };
        for end in 0..header.len() {
            assert_eq!(decode(&header[..end]), Ok(None), "{end} bytes of {header:?}");
        }
        assert_eq!(decode(&header), Ok(Some(expected)), "{header:?}");
        // As it is read: what is there is looked at, and what belongs to it is taken.
        let stream = [&header[..], b"POST /webhook/cdr HTTP/1.1\r\n\r\n{}"].concat();
        let mut taken = 0;
        while decode(&stream[..taken]) == Ok(None) {
            let seen = (taken + random.usize(1..300)).min(stream.len());
            let more = extent(&stream[..seen]);
            assert!(more > taken, "nothing new among {seen} bytes of {stream:?}");
            taken = more;
        }
        assert_eq!(taken, header.len(), "{stream:?}");
    }
}

/// What reading decides on, and how much of the stream it has taken by then, when the stream comes in pieces of this size.
fn read(stream: &[u8], piece: usize) -> (Result<Option<Option<SocketAddr>>, Fault>, usize) {
    let (mut taken, mut come) = (0, 0);
    loop {
        match decode(&stream[..taken]) {
            Ok(None) if come < stream.len() => {}
            decided => return (decided, taken),
        }
        come = (come + piece).min(stream.len());
        taken = extent(&stream[..come]);
    }
}

#[test]
fn the_longest_headers_are_read_and_longer_ones_are_not_however_they_come() {
    let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16)).into_bytes();
    let four = addresses("203.0.113.7:56324".parse().unwrap()).1;
    let block = |length: usize| [&four[..], &field(4, &vec![0; length - FIXED - 12 - 3])].concat();
    let too_long = |what| Err(Fault::Invalid(what));
    let cases = [
        (line(LINE), NOBODY, LINE),
        (line(LINE + 1), too_long("the line is too long"), LINE),
        ([&b"PROXY TCP4 "[..], &[b'1'; 10_000]].concat(), too_long("the line is too long"), LINE),
        (version2(0x21, 0x11, &block(MOST)), told("203.0.113.7:56324"), MOST),
        // Known by its length, before there is any need to wait for the rest.
        (version2(0x21, 0x11, &block(MOST + 1)), too_long("the header is too long"), FIXED),
        // A length that ends within a field leaves half of it, and what is behind is no longer looked at.
        (raw(0x21, 0x11, 14, &block(100)), too_long("a further field is not complete"), FIXED + 14),
    ];
    for (header, decided, taken) in cases {
        for piece in [1, 7, 256, header.len() + 40] {
            let stream = [&header[..], b"POST /webhook/cdr HTTP/1.1\r\n\r\n{}"].concat();
            let (found, read) = read(&stream, piece);
            assert_eq!(found, decided, "{} bytes in pieces of {piece}", header.len());
            // Of what is refused, no more than a piece beyond what tells it.
            let refused = decided.is_err();
            assert!(
                read == taken || refused && (taken..taken + piece).contains(&read),
                "{read} bytes taken, {taken} needed"
            );
        }
    }
}

#[test]
fn nothing_that_comes_is_too_strange() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let (family, block) = addresses("[2001:db8::7]:56324".parse().unwrap());
    let models = [
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n".to_vec(),
        summed(version2(0x21, family, &[block, field(CRC32C, &[0; 4])].concat()), FIXED + 36 + 3),
    ];
    for _ in 0..200_000 {
        let mut bytes = random.choice(&models).unwrap().clone();
        for _ in 0..random.usize(1..4) {
            match random.u8(..3) {
                0 => *random.choice(&mut bytes).unwrap() = random.u8(..),
                1 => bytes.insert(random.usize(..=bytes.len()), random.u8(..)),
                _ => bytes.truncate(random.usize(1..=bytes.len())),
            }
        }
        let extent = extent(&bytes);
        assert!((1..=bytes.len()).contains(&extent), "{bytes:?}");
        let _ = decode(&bytes);
        let _ = decode(&bytes[..extent]);
    }
}
