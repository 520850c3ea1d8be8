//! From when until when a certificate is valid, which rustls does not tell of one's own.

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, Reader, SliceReader, Tag, TagNumber};
use jiff::Timestamp;
use std::fmt;
use std::path::PathBuf;

/// What is known of the server's own certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    file: PathBuf,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Certificate {
    /// Reads one in DER that comes from `file`; `None` if it is none.
    pub(super) fn parse(der: &[u8], file: PathBuf) -> Option<Self> {
        let (not_before, not_after) = SliceReader::new(der).and_then(validity).ok()?;
        Some(Self { file, not_before, not_after })
    }

    /// When it expires, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after.as_second()
    }

    /// Why clients refuse it now, if they do because of the time.
    pub fn problem(&self) -> Option<String> {
        self.problem_at(Timestamp::now())
    }

    fn problem_at(&self, now: Timestamp) -> Option<String> {
        let file = self.file.display();
        if now > self.not_after {
            Some(format!(
                "`ingress.tls.cert_file`: the certificate in {file} has expired at {}; renew it",
                self.not_after
            ))
        } else if now < self.not_before {
            let begins = self.not_before;
            Some(format!(
                "`ingress.tls.cert_file`: the certificate in {file} is not valid before {begins}; is the clock right?"
            ))
        } else {
            None
        }
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, valid until {}", self.file.display(), self.not_after)
    }
}

/// `Certificate ::= SEQUENCE { TBSCertificate, … }` with `TBSCertificate ::= SEQUENCE { [0] version, serialNumber, signature,
/// issuer, validity, … }` of RFC 5280, 4.1.
fn validity(mut reader: SliceReader<'_>) -> der::Result<(Timestamp, Timestamp)> {
    let mut certificate = SliceReader::new(AnyRef::decode(&mut reader)?.value())?;
    let mut signed = SliceReader::new(AnyRef::decode(&mut certificate)?.value())?;
    let version = Tag::ContextSpecific { constructed: true, number: TagNumber::N0 };
    if signed.peek_header()?.tag == version {
        AnyRef::decode(&mut signed)?;
    }
    let [_serial, _signature, _issuer] =
        [AnyRef::decode(&mut signed)?, AnyRef::decode(&mut signed)?, AnyRef::decode(&mut signed)?];
    let mut validity = SliceReader::new(AnyRef::decode(&mut signed)?.value())?;
    Ok((time(&mut validity)?, time(&mut validity)?))
}

fn time(reader: &mut SliceReader<'_>) -> der::Result<Timestamp> {
    let since = match reader.peek_header()?.tag {
        Tag::UtcTime => UtcTime::decode(reader)?.to_unix_duration(),
        _ => GeneralizedTime::decode(reader)?.to_unix_duration(),
    };
    let seconds = i64::try_from(since.as_secs()).ok();
    seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).ok_or_else(|| der::ErrorKind::DateTime.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(from: i32, to: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 2, 3), date_time_ymd(to, 4, 5));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn both_ways_to_write_a_time_are_read() {
        for (from, to) in [(2020, 2031), (2049, 2050), (2060, 2999)] {
            let parsed = Certificate::parse(&certificate(from, to), "x.pem".into()).unwrap();
            let day = |text: String| text.parse::<Timestamp>().unwrap();
            assert_eq!(parsed.not_before, day(format!("{from}-02-03T00:00:00Z")));
            assert_eq!(parsed.not_after, day(format!("{to}-04-05T00:00:00Z")));
        }
    }

    #[test]
    fn it_is_said_when_it_is_not_valid() {
        let parsed = Certificate::parse(&certificate(2020, 2031), "x.pem".into()).unwrap();
        let at = |time: &str| parsed.problem_at(time.parse().unwrap());
        assert_eq!(at("2025-01-01T00:00:00Z"), None);
        let early = at("2020-02-02T23:59:59Z").unwrap();
        assert!(early.contains("x.pem is not valid before 2020-02-03T00:00:00Z"), "{early}");
        let late = at("2031-04-05T00:00:01Z").unwrap();
        assert!(late.contains("x.pem has expired at 2031-04-05T00:00:00Z"), "{late}");
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let whole = certificate(2020, 2031);
        for length in 0..whole.len() {
            let cut = whole.get(..length).unwrap();
            assert_eq!(Certificate::parse(cut, "x.pem".into()), None, "{length} bytes");
        }
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..10_000 {
            let mut bytes = whole.clone();
            let at = random.usize(..bytes.len().min(120));
            bytes[at] = random.u8(..);
            // Whatever it says, it says something.
            let _ = Certificate::parse(&bytes, "x.pem".into());
        }
    }
}
