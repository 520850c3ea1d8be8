//! The platform's lists of calls, as TeleCMI documents them, and all that can go wrong with them.
//!
//! ```ignore
//! let platform = Platform::start(Dialect::International).await;
//! platform.add(List::Missed, now - 3_600_000, r#"{"cmiuid":"…","time":…}"#);
//! platform.disturb([Fault::Status(429, Some("1".into()))]); // the next answer only
//! ```

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::tls::Files;

pub const APPID: u64 = 2_222_223;
/// Contains what JSON escapes, so that it is not found anywhere by luck.
pub const SECRET: &str = "s3cr3t-of-the-platform";

/// The greatest `limit`.
const MOST_CALLS: u64 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `/v2/…`, `secret`, `count`
    International,
    /// `/v1/…`, `token`, `total`
    India,
}

/// What happens to one answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A status, and a `Retry-After`.
    Status(u16, Option<String>),
    /// 200 and this body.
    Body(String),
    /// A redirect to this URL.
    Redirect(String),
    /// The connection ends in the middle of the body.
    CutOff,
    /// No length is told, and the connection ends in the middle of the body.
    CutOffUnnoticed,
    /// No answer at all.
    Silence,
    /// A header, and then a byte now and then.
    Trickle,
}

/// What is wrong with every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Habit {
    /// Nothing.
    #[default]
    Documented,
    /// `page` is ignored.
    SamePage,
    /// Pages never end.
    NewCallsForEver,
    /// Beyond the end comes the last page again.
    LastPageAgain,
    /// `limit` has no effect beyond ten.
    TenCalls,
    /// The pages end before `count` calls were listed.
    ForgetsCalls,
    /// The account does not have the list `answered`.
    NoAnswered,
}

struct Call {
    path: String,
    time: u64,
    element: String,
}

#[derive(Default)]
struct State {
    /// By the path of their list, newest first.
    calls: HashMap<String, Vec<Call>>,
    /// Calls that end while the lists are read: one more after each answer.
    shifting: VecDeque<Call>,
    faults: VecDeque<Fault>,
    habit: Habit,
    requests: Vec<(String, Value)>,
    in_flight: usize,
    most_in_flight: usize,
}

/// Stops when dropped.
pub struct Platform {
    url: String,
    dialect: Dialect,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Platform {
    pub async fn start(dialect: Dialect) -> Self {
        Self::launch(dialect, None).await
    }

    /// One that speaks TLS, with a certificate for `localhost`.
    pub async fn start_tls(dialect: Dialect, files: &Files) -> Self {
        Self::launch(dialect, Some(acceptor(files))).await
    }

    async fn launch(dialect: Dialect, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
        let state = Arc::<Mutex<State>>::default();
        let accepted = state.clone();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (state, tls) = (accepted.clone(), tls.clone());
                // A client that goes away is no fault of the platform.
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => serve(tls.accept(stream).await?, dialect, &state).await,
                        None => serve(stream, dialect, &state).await,
                    }
                });
            }
        });
        Self { url, dialect, state, server }
    }

    /// The table `[reconcile.NAME]` for it, without runs in the background unless `more` says otherwise.
    pub fn table(&self, name: &str, more: &str) -> String {
        let (platform, version) = match self.dialect {
            Dialect::International => ("telecmi", "v2"),
            Dialect::India => ("telecmi-india", "v1"),
        };
        let every = if more.contains("every") { "" } else { "every = '0s'\n" };
        let secret = if more.contains("secret") { String::new() } else { format!("secret = '{SECRET}'\n") };
        format!(
            "[reconcile.{name}]\nplatform = '{platform}'\nbase_url = '{}/{version}'\nappid = {APPID}\npause = '1ms'\n\
             {every}{secret}{more}\n",
            self.url
        )
    }

    /// Adds a call to the list at the path.
    pub fn add(&self, path: &str, time: u64, element: impl Into<String>) {
        self.state.lock().add(call(path, time, element));
    }

    /// Has a call end while lists are read.
    pub fn add_while_reading(&self, path: &str, time: u64, element: impl Into<String>) {
        self.state.lock().shifting.push_back(call(path, time, element));
    }

    /// Spoils the next answers, one each.
    pub fn disturb(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().faults.extend(faults);
    }

    /// Spoils all answers.
    pub fn behave(&self, habit: Habit) {
        self.state.lock().habit = habit;
    }

    /// The requests so far: the list's path, and the body.
    pub fn requests(&self) -> Vec<(String, Value)> {
        self.state.lock().requests.clone()
    }

    /// The most requests there were at a time.
    pub fn most_in_flight(&self) -> usize {
        self.state.lock().most_in_flight
    }

    /// Faults that have not happened yet.
    pub fn faults_left(&self) -> usize {
        self.state.lock().faults.len()
    }
}

fn acceptor(files: &Files) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![certificate], key).unwrap()))
}

fn call(path: &str, time: u64, element: impl Into<String>) -> Call {
    Call { path: path.into(), time, element: element.into() }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, dialect: Dialect, state: &Mutex<State>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut first, mut length) = (String::new(), None, 0);
        while stream.read_line(&mut line).await? > 0 && line != "\r\n" {
            first.get_or_insert_with(|| line.clone());
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let Some(first) = first else { return Ok(()) };
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let request: Value = serde_json::from_slice(&body).expect("the body of a request is JSON");
        let path = first.split(' ').nth(1).unwrap().to_owned();
        assert!(first.starts_with("POST "), "{first}");
        let (fault, answer) = {
            let mut state = state.lock();
            state.in_flight += 1;
            state.most_in_flight = state.most_in_flight.max(state.in_flight);
            state.requests.push((path.rsplit('/').next().unwrap().to_owned(), request.clone()));
            (state.faults.pop_front(), state.answer(&path, &request, dialect))
        };
        let sent = send(&mut stream, fault, answer).await;
        state.lock().in_flight -= 1;
        if !sent? {
            return Ok(());
        }
    }
}

/// Sends the answer; says whether the connection goes on.
async fn send(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    fault: Option<Fault>,
    body: String,
) -> io::Result<bool> {
    let whole = |status: u16, more: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status} status\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n{body}"
        )
    };
    let half = &body[..body.len() / 2];
    let (text, goes_on) = match fault {
        None => (whole(200, "", &body), true),
        Some(Fault::Status(status, retry_after)) => {
            let retry_after = retry_after.map(|text| format!("retry-after: {text}\r\n")).unwrap_or_default();
            // A platform may well show what it was sent.
            (whole(status, &retry_after, &json!({ "error": SECRET }).to_string()), true)
        }
        Some(Fault::Body(body)) => (whole(200, "", &body), true),
        Some(Fault::Redirect(url)) => (whole(307, &format!("location: {url}\r\n"), ""), true),
        Some(Fault::CutOff) => (whole(200, "", &body).replace(&body, half), false),
        Some(Fault::CutOffUnnoticed) => (format!("HTTP/1.1 200 OK\r\n\r\n{half}"), false),
        Some(Fault::Silence) => {
            // Until the client has had enough.
            let _ = stream.read_u8().await;
            return Ok(false);
        }
        Some(Fault::Trickle) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await?;
            loop {
                stream.write_all(b" ").await?;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    };
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    Ok(goes_on)
}

impl State {
    fn add(&mut self, call: Call) {
        let calls = self.calls.entry(call.path.clone()).or_default();
        let place = calls.partition_point(|other| other.time > call.time);
        calls.insert(place, call);
    }

    fn answer(&mut self, path: &str, request: &Value, dialect: Dialect) -> String {
        let (version, secret, count) = match dialect {
            Dialect::International => ("/v2/", "secret", "count"),
            Dialect::India => ("/v1/", "token", "total"),
        };
        let path = path.strip_prefix(version).unwrap_or_else(|| panic!("{path}"));
        if request["appid"] != APPID || request[secret] != SECRET {
            return json!({ "code": 404, "msg": format!("no such account: {}", request[secret]) }).to_string();
        }
        if self.habit == Habit::NoAnswered && path == "answered" {
            return json!({ "code": 404, "msg": "not found" }).to_string();
        }
        let number = |name: &str| request[name].as_u64();
        let (Some(start), Some(end)) = (number("start_date"), number("end_date")) else {
            return json!({ "code": 400, "msg": "the last 24 hours are not what these tests ask for" }).to_string();
        };
        let (page, limit) = (number("page").unwrap_or(1), number("limit").unwrap_or(10));
        if limit > MOST_CALLS || page == 0 {
            return json!({ "code": 400, "msg": "limit" }).to_string();
        }
        let all = self.calls.get(path).map(Vec::as_slice).unwrap_or_default();
        let [from, until] = [end, start - 1].map(|time| all.partition_point(|call| call.time > time));
        let mut found = &all[from..until];
        let total = found.len();
        let limit = if self.habit == Habit::TenCalls { limit.min(10) } else { limit } as usize;
        let mut from = (page as usize - 1) * limit;
        match self.habit {
            Habit::SamePage => from = 0,
            Habit::LastPageAgain if from >= total => from = (total.saturating_sub(1)) / limit * limit,
            Habit::ForgetsCalls => found = &found[..total / 2],
            _ => {}
        }
        let elements = found.iter().skip(from).take(limit).map(|call| call.element.clone());
        let mut elements: Vec<String> = elements.collect();
        if self.habit == Habit::NewCallsForEver {
            elements = (0..limit)
                .map(|index| json!({ "cmiuid": format!("{page}-{index}"), "time": end }).to_string())
                .collect();
        }
        if let Some(ended) = self.shifting.pop_front() {
            self.add(ended);
        }
        format!("{{\"{count}\":{total},\"cdr\":[{}]}}", elements.join(","))
    }
}
