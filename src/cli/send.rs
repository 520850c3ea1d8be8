//! `cdrelay send`

pub mod options;
mod samples;

use super::explain::choose_route;
use super::output::{Output, note};
use super::run::raise_file_limit;
use super::{CommandError, Settings};
use crate::config::Config;
use crate::event::Arrival;
use crate::http_client::HttpClient;
use crate::ingress::auth::{self, Draft, sign};
use crate::soak::latency::Latency;
use clap::{Args, ValueEnum as _, value_parser};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use options::{Target, period, rate};
use samples::{Kind, Source};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

/// Requests at once. More of them wait.
const MAX_IN_FLIGHT: usize = 256;
/// The `appid` of the samples where the route asks for none.
const APPID: &str = "2222223";
/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(200);
/// More of an answer than is ever needed.
const ANSWER_BYTES: usize = 64 << 10;

/// Send webhooks to a bridge: samples of each kind of event, or the bodies of a file. Exits with 1 unless all were acknowledged.
///
/// The configuration is the bridge's own. It says where webhooks are taken, and with which credentials: the secrets and signatures
/// of the route's `auth` are added to each request.
#[derive(Debug, Args)]
pub struct Send {
    #[command(flatten)]
    settings: Settings,
    /// The route to send to; not needed if there is one.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    #[command(flatten)]
    target: Target,
    /// A file with a body, or with one JSON body on each line, in place of samples.
    #[arg(long, value_name = "FILE", conflicts_with = "kind")]
    file: Option<PathBuf>,
    /// A kind of sample; may be given several times. Otherwise all kinds are sent in turns.
    #[arg(long, value_enum, value_name = "KIND")]
    kind: Vec<Kind>,
    /// The Content-Type of the bodies.
    #[arg(long, value_name = "TYPE", default_value = "application/json")]
    content_type: String,
    /// How many webhooks to send; otherwise each kind, or each body of the file, once.
    #[arg(long, value_name = "NUMBER", value_parser = value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Webhooks a second.
    #[arg(long, value_name = "NUMBER", default_value = "10", value_parser = rate)]
    rate: f64,
    /// How long to wait for an answer.
    #[arg(long, value_name = "PERIOD", default_value = "15s", value_parser = period)]
    timeout: Duration,
}

/// Makes and sends the requests.
struct Sender {
    client: HttpClient,
    url: Uri,
    checks: Vec<auth::Config>,
    source: Source,
    run: u64,
    content_type: HeaderValue,
    timeout: Duration,
}

/// The answer to one request.
struct Answer {
    after: Duration,
    result: Result<(StatusCode, Vec<u8>), String>,
}

/// The body of a 2xx.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    stored: u64,
    duplicates: u64,
}

#[derive(Default)]
struct Summary {
    answered: usize,
    acknowledged: usize,
    events: Stored,
    /// How many requests failed in each way.
    failures: BTreeMap<String, usize>,
    latency: Latency,
}

impl Send {
    pub fn execute(self) -> Result<(), CommandError> {
        let config = self.settings.load()?;
        let sender = Arc::new(self.sender(&config)?);
        let count = self.count.map_or(sender.source.len(), |count| count as usize);
        raise_file_limit();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let begun = Instant::now();
        let summary = runtime.block_on(send(sender, count, self.rate));
        let mut out = Output::new();
        summary.show(begun.elapsed(), &mut out)?;
        out.flush()?;
        match count - summary.acknowledged {
            0 => Ok(()),
            refused => Err(CommandError::NotAcknowledged(refused)),
        }
    }

    fn sender(&self, config: &Config) -> Result<Sender, CommandError> {
        let usage = |problem: String| CommandError::Usage(problem);
        let name = choose_route(config, self.route.as_deref())?;
        let route = config.ingress.all_routes().remove(&name);
        let route = route.ok_or_else(|| usage(format!("no route is called {name}")))?;
        // The secret of the path comes into its place with the others.
        let path = route.path.replace("{secret}", "%7Bsecret%7D");
        let url = self.target.url(&config.ingress, Some(&path))?;
        let tls = self.target.tls(&url)?;
        let appids = route.auth.iter().filter_map(|check| match check {
            auth::Config::AppId(own) => own.appids.0.first().cloned(),
            _ => None,
        });
        let appid = appids.last().unwrap_or_else(|| APPID.to_owned());
        let kinds = if self.kind.is_empty() { Kind::value_variants().to_vec() } else { self.kind.clone() };
        let source = match &self.file {
            Some(path) => Source::read(path)?,
            None => Source::Samples { kinds, appid },
        };
        let content_type = self.content_type.parse();
        Ok(Sender {
            client: HttpClient::new(tls, MAX_IN_FLIGHT),
            url,
            checks: route.auth,
            source,
            run: fastrand::u64(..),
            content_type: content_type.map_err(|_| usage("--content-type cannot be sent".to_owned()))?,
            timeout: self.timeout,
        })
    }
}

/// Sends at the rate, and waits for all answers. A request that finds too many in flight waits for one of them.
async fn send(sender: Arc<Sender>, count: usize, rate: f64) -> Summary {
    let begun = tokio::time::Instant::now();
    let mut summary = Summary::default();
    let mut in_flight = JoinSet::new();
    let mut shown = Instant::now();
    let on_terminal = stderr().is_terminal();
    let mut next = 0;
    while next < count || !in_flight.is_empty() {
        let due = begun + Duration::from_secs_f64(next as f64 / rate);
        tokio::select! {
            // A task that panicked has no answer; nothing here panics.
            Some(answered) = in_flight.join_next() => answered.map_or((), |answer| summary.add(answer)),
            () = sleep_until(due), if next < count && in_flight.len() < MAX_IN_FLIGHT => {
                let (sender, number) = (sender.clone(), next);
                in_flight.spawn(async move { sender.exchange(number).await });
                next += 1;
            }
        }
        if on_terminal && (shown.elapsed() >= PROGRESS || summary.answered == count) {
            shown = Instant::now();
            summary.progress(count);
        }
    }
    if on_terminal {
        note("");
    }
    summary
}

impl Sender {
    async fn exchange(&self, number: usize) -> Answer {
        let begun = Instant::now();
        let result = match self.request(number) {
            Ok(request) => match timeout(self.timeout, self.client.send(request, ANSWER_BYTES)).await {
                Ok(answer) => answer.map(|answer| (answer.status, answer.body)).map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {:?}", self.timeout)),
            },
            Err(problem) => Err(problem),
        };
        Answer { after: begun.elapsed(), result }
    }

    /// The request with its credentials.
    fn request(&self, number: usize) -> Result<Request<String>, String> {
        let target =
            self.url.path_and_query().map_or("/", |target| target.as_str()).replace("%7Bsecret%7D", "{secret}");
        let mut draft = Draft { target, headers: HeaderMap::new(), body: self.source.body(number, self.run) };
        draft.headers.insert(CONTENT_TYPE, self.content_type.clone());
        sign(&self.checks, &mut draft, Arrival::now().0 / 1000)?;
        let mut parts = self.url.clone().into_parts();
        parts.path_and_query =
            Some(draft.target.parse().map_err(|_| "the secret cannot be sent in the URL".to_owned())?);
        let mut request = Request::new(draft.body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(parts).map_err(|error| error.to_string())?;
        *request.headers_mut() = draft.headers;
        Ok(request)
    }
}

impl Summary {
    fn add(&mut self, Answer { after, result }: Answer) {
        self.answered += 1;
        match result {
            Ok((status, body)) if status.is_success() => {
                let Stored { stored, duplicates } = serde_json::from_slice(&body).unwrap_or_default();
                self.acknowledged += 1;
                self.events.stored += stored;
                self.events.duplicates += duplicates;
                self.latency.record(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
            }
            Ok((status, body)) => {
                let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let detail = problem.get("detail").and_then(|detail| detail.as_str()).unwrap_or_default();
                self.fail(format!("{} {detail}", status.as_u16()));
            }
            Err(cause) => self.fail(cause),
        }
    }

    fn fail(&mut self, cause: String) {
        *self.failures.entry(cause).or_default() += 1;
    }

    /// One line on a terminal, written over the one before.
    fn progress(&self, count: usize) {
        const WIDTH: usize = 30;
        let full = WIDTH * self.answered / count.max(1);
        let bar: String = (0..WIDTH).map(|column| if column < full { '#' } else { '.' }).collect();
        let refused = self.answered - self.acknowledged;
        let _ = write!(stderr(), "\r[{bar}] {}/{count} acknowledged, {refused} refused ", self.acknowledged);
    }

    fn show(&self, elapsed: Duration, out: &mut Output) -> std::io::Result<()> {
        let Stored { stored, duplicates } = self.events;
        out.line(format_args!(
            "{} of {} webhooks acknowledged in {:.1} s: {stored} events stored, {duplicates} duplicates",
            self.acknowledged,
            self.answered,
            elapsed.as_secs_f64()
        ))?;
        let latency = self.latency.percentiles();
        out.line(format_args!(
            "latency in ms: p50 {:.1}, p90 {:.1}, p99 {:.1}, max {:.1}",
            latency.p50, latency.p90, latency.p99, latency.max
        ))?;
        self.failures.iter().try_for_each(|(cause, count)| out.line(format_args!("{count} refused: {cause}")))
    }
}
