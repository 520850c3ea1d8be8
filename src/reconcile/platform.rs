//! Asks the platform for one page of a list: one request at a time, with a pause before each, retried with backoff.
//!
//! The account's secret is in the body of each request. No error shows a body, of a request or of an answer, and no redirect is followed.

use super::config::{Config, List};
use crate::event::{MAX_DEPTH, json};
use crate::http_client::{Answer, HttpClient, PostError};
use crate::setting::Secret;
use hyper::header::{HeaderMap, RETRY_AFTER};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use std::ops::Range;
use std::time::Duration;

/// Calls on a page; the platform's greatest `limit`.
pub const PAGE_CALLS: usize = 20;
/// The largest answer that is read.
const ANSWER_BYTES: usize = 4 << 20;
/// Elements of an answer that are read: many more than were asked for.
const ANSWER_CALLS: usize = 1000;
/// Members of an answer that are read.
const ANSWER_MEMBERS: usize = 100;
/// How often a request is sent until it counts as failed.
const ATTEMPTS: u32 = 5;
/// Before the second attempt; doubled before each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// A platform that asks to wait longer has to wait for the next run.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The platform's interface for one account.
pub struct Client<'a> {
    config: &'a Config,
    http: HttpClient,
    secret: Secret,
}

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// Calls on all pages, if the platform tells.
    pub count: Option<u64>,
    /// The elements as they are, newest first.
    pub elements: Vec<String>,
}

/// Why a page cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct PageError {
    problem: String,
    /// Whether the next attempt may succeed.
    is_transient: bool,
    /// When the platform asks to come again.
    retry_after: Option<Duration>,
}

impl PageError {
    fn transient(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), is_transient: true, retry_after: None }
    }

    fn lasting(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), is_transient: false, retry_after: None }
    }

    /// The platform's refusal with an HTTP status, or with a code of the same meaning in the body.
    fn refused(code: u64) -> Self {
        match code {
            408 | 429 | 500.. => Self::transient(format!("the platform answers {code}")),
            300..=399 => Self::lasting(format!(
                "the platform answers {code}, a redirect, which is not followed since the request holds the secret; set `base_url`"
            )),
            401 | 403 | 404 => Self::lasting(format!(
                "the platform answers {code}: `appid` or the secret is wrong, or the account does not have this list"
            )),
            _ => Self::lasting(format!(
                "the platform answers {code}: it misses a parameter or refuses one; is `platform` right?"
            )),
        }
    }
}

impl<'a> Client<'a> {
    /// A client with the secret and the authorities as they are in their files now. An error names the setting.
    pub fn open(config: &'a Config) -> Result<Self, String> {
        Ok(Self { config, http: HttpClient::new(config.read_tls()?, 1), secret: config.read_secret()? })
    }

    /// A page, counted from 1, of the calls that began within `time`, in milliseconds since 1970.
    pub async fn page(&self, list: List, time: &Range<u64>, page: usize) -> Result<Page, PageError> {
        let mut backoff = FIRST_BACKOFF;
        let mut attempt = 1;
        loop {
            tokio::time::sleep(self.config.pause).await;
            let error = match self.attempt(list, time, page).await {
                Err(error) if error.is_transient && attempt < ATTEMPTS => error,
                result => return result,
            };
            let wait = error.retry_after.unwrap_or(backoff + backoff.mul_f64(fastrand::f64() / 4.0));
            if wait > LONGEST_WAIT {
                return Err(error);
            }
            tracing::debug!(%list, page, attempt, %error, ?wait, "asking the platform again");
            tokio::time::sleep(wait).await;
            backoff *= 2;
            attempt += 1;
        }
    }

    async fn attempt(&self, list: List, time: &Range<u64>, page: usize) -> Result<Page, PageError> {
        let url = self.config.url(list).map_err(PageError::lasting)?;
        let body = self.request(time, page);
        let Answer { status, headers, body } =
            match tokio::time::timeout(self.config.timeout, self.http.post(&url, body, ANSWER_BYTES)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error @ PostError::TooLarge(_))) => return Err(PageError::lasting(error.to_string())),
                Ok(Err(PostError::Failed(problem))) => {
                    return Err(PageError::transient(format!("no complete answer: {problem}")));
                }
                Err(_) => {
                    return Err(PageError::transient(format!("no complete answer within {:?}", self.config.timeout)));
                }
            };
        let read = match status.as_u16() {
            200..300 => self.read(&body),
            code => Err(PageError::refused(code.into())),
        };
        read.map_err(|error| PageError { retry_after: retry_after(&headers, Timestamp::now()), ..error })
    }

    fn request(&self, time: &Range<u64>, page: usize) -> String {
        let Config { platform, appid, .. } = self.config;
        let (member, secret) = (platform.secret_member(), json::quote(self.secret.reveal()));
        format!(
            "{{\"appid\":{appid},\"{member}\":{secret},\"start_date\":{},\"end_date\":{},\"page\":{page},\"limit\":{PAGE_CALLS}}}",
            time.start, time.end
        )
    }

    fn read(&self, body: &[u8]) -> Result<Page, PageError> {
        if body.trim_ascii_start().starts_with(b"<") {
            return Err(PageError::lasting("the answer is HTML or XML, not JSON; is `base_url` right?"));
        }
        let text = str::from_utf8(body).map_err(|_| PageError::lasting("the answer is not UTF-8"))?;
        let object = json::parse(text.trim_start_matches('\u{feff}'), MAX_DEPTH).map_err(|error| {
            // Without the parser's words, which may quote the answer. An answer without a length that is cut off looks complete.
            let problem = format!("the answer is not JSON (line {}, column {})", error.line, error.column);
            if error.problem.starts_with("EOF") { PageError::transient(problem) } else { PageError::lasting(problem) }
        })?;
        let members = json::members(object, ANSWER_MEMBERS).list;
        let member = |name: &str| members.iter().rev().find(|member| *member.name == *name.as_bytes());
        let number = |name: &str| str::from_utf8(member(name)?.value.bytes()).ok()?.parse::<u64>().ok();
        if let Some(code) = number("code").or_else(|| number("status")).filter(|code| !(200..300).contains(code)) {
            return Err(PageError::refused(code));
        }
        let changed = "the answer has no list `cdr`; has the platform's interface changed, or is `platform` wrong?";
        let list = member("cdr").and_then(|member| member.value.container()).filter(|list| list.get().starts_with('['));
        let elements = json::elements(list.ok_or_else(|| PageError::lasting(changed))?, ANSWER_CALLS);
        if elements.truncated {
            return Err(PageError::lasting(format!("a page has more than {ANSWER_CALLS} calls")));
        }
        let elements = elements.list.into_iter().map(|element| element.get().to_owned()).collect();
        Ok(Page { count: number(self.config.platform.count_member()), elements })
    }
}

/// RFC 9110, section 10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use figment::Figment;
    use figment::providers::{Format as _, Toml};

    fn config() -> Config {
        let toml = "platform = 'telecmi'\nappid = 7\nsecret = 'hunter\"2'\nbase_url = 'http://127.0.0.1:1'";
        Figment::from(Toml::string(toml)).extract().unwrap()
    }

    fn read(body: &str) -> Result<Page, PageError> {
        Client::open(&config()).unwrap().read(body.as_bytes())
    }

    #[test]
    fn a_request_is_as_documented() {
        let config = config();
        let request = Client::open(&config).unwrap().request(&(1..2), 3);
        let expected = r#"{"appid":7,"secret":"hunter\"2","start_date":1,"end_date":2,"page":3,"limit":20}"#;
        assert_eq!(request, expected);
        assert!(!format!("{config:?}").contains("hunter"));
    }

    #[test]
    fn elements_are_read_as_they_stand() {
        let page = read(r#" {"count": 2, "cdr": [ {"rate":1.50, "x":1e2} , 7 ]} "#).unwrap();
        assert_eq!((page.count, page.elements), (Some(2), vec![r#"{"rate":1.50, "x":1e2}"#.to_owned(), "7".into()]));
        assert!(read(r#"{"code":200,"status":"success","cdr":[]}"#).unwrap().elements.is_empty());
    }

    #[test]
    fn anything_but_a_page_is_an_error_that_shows_no_content() {
        for (body, problem, is_transient) in [
            ("<html>hunter2", "HTML", false),
            ("hunter2", "line 1, column 1", false),
            (r#"{"count":1,"cdr":[{"name":"hunter2""#, "not JSON", true),
            (r#"{"code":404,"msg":"hunter2"}"#, "404: `appid` or the secret is wrong", false),
            (r#"{"code":"404","cdr":[]}"#, "404", false),
            (r#"{"status":400}"#, "misses a parameter", false),
            (r#"{"code":429}"#, "answers 429", true),
            (r#"{"count":0}"#, "no list `cdr`", false),
            (r#"{"cdr":{"hunter2":1}}"#, "no list `cdr`", false),
            (r#"["hunter2"]"#, "no list `cdr`", false),
        ] {
            let error = read(body).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(problem) && !text.contains("hunter2"), "{body}: {text}");
            assert_eq!(error.is_transient, is_transient, "{body}");
        }
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("120", Some(120)),
            ("Thu, 01 Jan 2026 00:01:00 GMT", Some(60)),
            ("Wed, 31 Dec 2025 23:59:00 GMT", Some(0)),
            ("soon", None),
            ("-5", None),
        ] {
            let headers = [(RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text}");
        }
    }
}
