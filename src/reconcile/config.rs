//! `[reconcile.NAME]`

use crate::http_client::{ClientConfig, Trust};
use crate::route::Origin;
use crate::setting::{Period, Secret};
use hyper::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[reconcile.NAME]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which interface is asked.
    pub platform: Platform,
    /// Its URL up to the names of the lists; the platform's own if not set.
    #[serde(default)]
    pub base_url: Option<String>,
    /// The account.
    pub appid: u64,
    /// The account's secret, which the platform's documents also call token.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// The file that holds it, read anew for each run.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// PEM file of the authorities to trust in place of the system's, read anew for each run.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The lists to compare.
    #[serde(default = "all_lists")]
    pub lists: Vec<List>,
    /// From the start of one run in the background to the start of the next; zero: there are none.
    #[serde(default = "every", with = "Period")]
    pub every: Duration,
    /// How far back a run looks.
    #[serde(default = "window", with = "Period")]
    pub window: Duration,
    /// Calls that ended later than this long ago are left alone: their webhooks may still come.
    #[serde(default = "settle", with = "Period")]
    pub settle: Duration,
    /// How long to wait before each request.
    #[serde(default = "pause", with = "Period")]
    pub pause: Duration,
    /// How long a request may take, from connecting to the end of the answer.
    #[serde(default = "timeout", with = "Period")]
    pub timeout: Duration,
    /// The values of `{labels.NAME}` in templates.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// An interface that lists calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Platform {
    /// <https://doc.telecmi.com/chub/docs/missed-call/>
    #[serde(rename = "telecmi")]
    Telecmi,
    /// <https://doc.telecmi.com/chub-india/docs/missed-call/>
    #[serde(rename = "telecmi-india")]
    TelecmiIndia,
}

/// A list of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum List {
    /// Incoming and missed.
    Missed,
    /// Incoming and answered.
    Answered,
    /// Outgoing and missed.
    OutMissed,
    /// Outgoing and answered.
    OutAnswered,
}

fn all_lists() -> Vec<List> {
    List::ALL.into()
}

fn every() -> Duration {
    Duration::from_secs(15 * 60)
}

fn window() -> Duration {
    Duration::from_secs(6 * 3600)
}

fn settle() -> Duration {
    Duration::from_secs(10 * 60)
}

fn pause() -> Duration {
    Duration::from_millis(200)
}

fn timeout() -> Duration {
    Duration::from_secs(30)
}

impl List {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Missed, Self::Answered, Self::OutMissed, Self::OutAnswered];

    /// Its name in settings, reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::Answered => "answered",
            Self::OutMissed => "out_missed",
            Self::OutAnswered => "out_answered",
        }
    }

    /// `direction` and `status` of its calls, as webhooks have them.
    pub fn implies(self) -> (&'static str, &'static str) {
        match self {
            Self::Missed => ("inbound", "missed"),
            Self::Answered => ("inbound", "answered"),
            Self::OutMissed => ("outbound", "missed"),
            Self::OutAnswered => ("outbound", "answered"),
        }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Platform {
    fn default_url(self) -> &'static str {
        match self {
            Self::Telecmi => "https://rest.telecmi.com/v2",
            Self::TelecmiIndia => "https://piopiy.telecmi.com/v1",
        }
    }

    /// The last segment of a list's URL.
    pub fn path(self, list: List) -> &'static str {
        match (self, list) {
            (Self::TelecmiIndia, List::OutMissed) => "outmissed",
            (Self::TelecmiIndia, List::OutAnswered) => "outanswered",
            _ => list.name(),
        }
    }

    /// The member of a request that holds the secret.
    pub fn secret_member(self) -> &'static str {
        match self {
            Self::Telecmi => "secret",
            Self::TelecmiIndia => "token",
        }
    }

    /// The member of an answer that counts the calls on all pages.
    pub fn count_member(self) -> &'static str {
        match self {
            Self::Telecmi => "count",
            Self::TelecmiIndia => "total",
        }
    }
}

impl Config {
    /// The URL of a list.
    pub fn url(&self, list: List) -> Result<Uri, String> {
        let base = self.base_url.as_deref().unwrap_or(self.platform.default_url()).trim_end_matches('/');
        let url: Uri = format!("{base}/{}", self.platform.path(list)).parse().map_err(|error| format!("{error}"))?;
        let authority = url.authority().ok_or("expected a URL such as \"https://rest.telecmi.com/v2\"")?;
        if authority.as_str().contains('@') || url.query().is_some() {
            return Err("expected a URL without a user and without a query".into());
        }
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        match url.scheme_str() {
            Some("https") => Ok(url),
            Some("http") if is_local => Ok(url),
            _ => Err("expected https://, since each request holds the secret; http:// only for this machine".into()),
        }
    }

    /// The secret as it is now.
    pub fn read_secret(&self) -> Result<Secret, String> {
        let secret = Secret::resolve("secret", self.secret.as_ref(), self.secret_file.as_deref());
        let secret = secret.map_err(|error| error.to_string())?;
        secret.filter(|secret| !secret.reveal().is_empty()).ok_or_else(|| "`secret_file`: holds no secret".into())
    }

    /// The authorities to trust, as they are now.
    pub fn read_tls(&self) -> Result<ClientConfig, String> {
        let trust = self.ca_file.as_deref().map_or(Trust::System, Trust::File);
        let is_encrypted = self.url(List::Missed).is_ok_and(|url| url.scheme_str() == Some("https"));
        let tls = if is_encrypted { trust } else { Trust::Nobody }.tls();
        Ok(tls.map_err(|problem| format!("`ca_file`: {problem}"))?.with_no_client_auth())
    }

    /// The metadata of its events for templates.
    pub fn origin(&self) -> Origin {
        Origin { labels: self.labels.clone(), is_reconciled: true, ignores_query: true, ..Origin::default() }
    }

    /// A key and a problem for each mistake. Files are not read.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if let Err(problem) = self.url(List::Missed) {
            problems.push(("base_url", format!("found {:?}; {problem}", self.base_url.as_deref().unwrap_or_default())));
        }
        match (&self.secret, &self.secret_file) {
            (Some(_), Some(_)) => problems.push(("secret", "is set beside `secret_file`; keep one of them".into())),
            (None, None) => {
                problems.push(("secret_file", "is missing; it names the file of the account's secret".into()))
            }
            (Some(secret), None) if secret.reveal().is_empty() => problems.push(("secret", "is empty".into())),
            _ => {}
        }
        if self.lists.is_empty() {
            let names = List::ALL.map(List::name).join(", ");
            problems.push(("lists", format!("found an empty list; allowed are {names}")));
        }
        if self.window <= self.settle {
            problems.push((
                "window",
                format!("found {:?}; it has to be longer than `settle`, {:?}", self.window, self.settle),
            ));
        }
        if self.timeout.is_zero() {
            problems.push(("timeout", "found 0; with that no request could be answered".into()));
        }
        problems
    }
}
