//! From when until when a certificate is valid, which rustls tells only of one that is not.

use jiff::Timestamp;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, Error, RootCertStore};

/// The server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    file: PathBuf,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Certificate {
    /// Reads one in DER that comes from `file`; `None` if it is none.
    pub(super) fn parse(der: &CertificateDer<'_>, file: PathBuf) -> Option<Self> {
        let (not_before, not_after) = validity(der)?;
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

/// From when until when it is valid. The verifier of rustls, which looks at the time first, tells it: of a certificate that it finds
/// not valid yet from when, of an expired one since when.
fn validity(der: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let mut itself = RootCertStore::empty();
    itself.add(der.clone().into_owned()).ok()?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(itself), provider).build().ok()?;
    let name = ServerName::try_from("localhost").ok()?;
    let at = |seconds| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        verifier.verify_server_cert(der, &[], &name, &[], time)
    };
    let not_before = match at(0) {
        Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => not_before.as_secs(),
        _ => 0,
    };
    let Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) = at(u64::MAX) else {
        return None;
    };
    let timestamp = |seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok();
    Some((timestamp(not_before)?, timestamp(not_after.as_secs())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(from: i32, to: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 2, 3), date_time_ymd(to, 4, 5));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
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
            let cut = whole.get(..length).unwrap().into();
            assert_eq!(Certificate::parse(&cut, "x.pem".into()), None, "{length} bytes");
        }
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..10_000 {
            let mut bytes = whole.to_vec();
            let at = random.usize(..bytes.len().min(120));
            bytes[at] = random.u8(..);
            // Whatever it says, it says something.
            let _ = Certificate::parse(&bytes.into(), "x.pem".into());
        }
    }
}
