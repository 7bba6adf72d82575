//! Watch streams on both servers at once: opened alike, asked alike, and each watcher must be told the same story.
//!
//! What arrives is kept by watcher: that it was created, its events, that it was canceled. How events are cut into responses,
//! and how those of different watchers are mixed, is each server's own choice; but all events of a revision must come in one
//! response, unless the watcher has asked for fragments, and no response may promise less than it holds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::generate::Generator;
use crate::grpc::{Item, Requests};
use crate::http::{Client, Request};
use crate::lines;
use crate::peer::Peer;
use crate::schema::{Schema, base64};
use crate::socket::Socket;

/// How long both may take until they have told the same.
const PATIENCE: Duration = Duration::from_secs(20);
/// The key that is put to see how far a stream is, and the watcher that watches it.
const TICK: &[u8] = b"~tick";
const TICK_WATCHER: i64 = 1000;
/// Longer than a watcher needs to catch up here: etcd looks after those that lag ten times a second.
const CATCHING_UP: Duration = Duration::from_millis(250);
/// Watchers that begin in the past have ids from here on.
const LAGGING_ID: i64 = 10_000;
/// Streams that are open at the same time.
const STREAMS: usize = 6;
const METHOD: &str = "/etcdserverpb.Watch/Watch";

/// How a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Grpc,
    /// JSON in messages of a WebSocket.
    Socket,
    /// All requests at once in the body of a POST, results by the line.
    Lines,
}

enum Sender {
    Grpc(Requests),
    Socket(Socket),
    Lines { _connection: lines::Connection },
}

/// One server's end of a stream, and what has arrived there.
struct Side {
    sender: Sender,
    items: Receiver<Item>,
    decode: Form,
    /// What each watcher was told, since it was last compared.
    told: BTreeMap<i64, Vec<Value>>,
    /// Watchers that answered to creation.
    created: usize,
    /// The newest revision of the tick.
    ticked: i64,
    /// The revision that each watcher of the stream may take for complete; under -1, the newest told to all.
    progress: BTreeMap<i64, i64>,
    /// The newest revision of each watcher's events, and whether the rest of it is still to come.
    newest: BTreeMap<i64, (i64, bool)>,
    /// Whether a watcher was canceled by a compaction.
    compacted: bool,
    wrong: Option<String>,
}

struct Stream {
    form: Form,
    sides: [Side; 2],
    /// Creations asked for.
    asked: usize,
    /// The newest revision that a watcher was to begin with.
    future: i64,
    /// For the report: what was asked on it.
    history: VecDeque<String>,
}

/// All streams of a run.
pub(crate) struct Streams {
    open: Vec<Stream>,
    /// When a watcher was last made that has to catch up.
    lagging: Option<Instant>,
    pub(crate) events: u64,
    pub(crate) asked: u64,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self { open: Vec::new(), lagging: None, events: 0, asked: 0 }
    }

    /// Closes all streams, after a difference.
    pub(crate) fn reset(&mut self) {
        self.open.clear();
    }

    /// Does one thing to one of the streams, or opens one.
    pub(crate) fn step(
        &mut self,
        schema: &Schema,
        generator: &mut Generator,
        peers: &mut [Peer; 2],
    ) -> Result<(), String> {
        self.asked += 1;
        if self.open.len() < STREAMS {
            let form = *generator.rng().pick(&[Form::Grpc, Form::Grpc, Form::Socket, Form::Lines]);
            return self.open(schema, generator, peers, form);
        }
        let at = generator.rng().below(self.open.len() as u64) as usize;
        match generator.rng().below(100) {
            0..8 => {
                self.settle(schema, peers)?;
                self.open.remove(at);
                Ok(())
            }
            _ if self.open[at].form == Form::Lines => Ok(()),
            8..58 => {
                let request = create(generator);
                self.note_lag(&request);
                self.open[at].ask(schema, &request)
            }
            58..85 => {
                // What was on its way when a watcher is canceled may come or not.
                self.settle(schema, peers)?;
                let id = generator.rng().below(7) as i64;
                self.open[at].cancel(schema, id)
            }
            // Older releases tell of progress when they should not, and in another shape.
            _ if !generator.modern() => Ok(()),
            _ => {
                self.settle(schema, peers)?;
                let revision = self.open[at].sides[0].ticked;
                self.open[at].progress(schema, revision)
            }
        }
    }

    fn open(
        &mut self,
        schema: &Schema,
        generator: &mut Generator,
        peers: &mut [Peer; 2],
        form: Form,
    ) -> Result<(), String> {
        let more = 1 + generator.rng().below(4);
        let requests: Vec<Value> = (0..more).map(|_| create(generator)).collect();
        self.open_with(schema, peers, form, &requests)
    }

    /// Opens a stream with these watchers.
    pub(crate) fn open_with(
        &mut self,
        schema: &Schema,
        peers: &mut [Peer; 2],
        form: Form,
        requests: &[Value],
    ) -> Result<(), String> {
        let tick = json!({"create_request": {"key": base64(TICK, false), "watch_id": TICK_WATCHER.to_string()}});
        let requests: Vec<Value> = std::iter::once(tick).chain(requests.iter().cloned()).collect();
        requests.iter().for_each(|request| self.note_lag(request));
        let sides = [0, 1].map(|index| Side::open(&mut peers[index], form, &requests));
        let mut stream = Stream { form, sides, asked: 0, future: 0, history: VecDeque::new() };
        match form {
            Form::Grpc | Form::Socket => requests.iter().try_for_each(|request| stream.ask(schema, request))?,
            Form::Lines => {
                stream.asked = requests.len();
                stream.history.extend(requests.iter().map(Value::to_string));
                stream.wait_created(schema)?;
            }
        }
        self.open.push(stream);
        Ok(())
    }

    fn note_lag(&mut self, request: &Value) {
        if request["create_request"].get("start_revision").is_some() {
            self.lagging = Some(Instant::now());
        }
    }

    /// The same as [`Streams::settle`], and no watcher lags afterwards: those that do are canceled by a compaction.
    pub(crate) fn catch_up(&mut self, schema: &Schema, peers: &mut [Peer; 2]) -> Result<(), String> {
        self.settle(schema, peers)?;
        // A watcher that is told nothing does not show when it has caught up.
        if let Some(since) = self.lagging.take() {
            std::thread::sleep(CATCHING_UP.saturating_sub(since.elapsed()));
        }
        Ok(())
    }

    /// Waits until every watcher on every stream has been told the same by both.
    pub(crate) fn settle(&mut self, schema: &Schema, peers: &mut [Peer; 2]) -> Result<(), String> {
        let body = format!(r#"{{"key":"{}"}}"#, base64(TICK, false));
        let put = Request::post("/v3/kv/put".to_owned(), body);
        let mut revisions = peers.iter_mut().map(|peer| {
            let answer = peer.json().send(&put);
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            body["header"]["revision"]
                .as_str()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or_else(|| body.to_string())
        });
        let revisions = [revisions.next().unwrap()?, revisions.next().unwrap()?];
        if revisions[0] != revisions[1] {
            return Err(format!("a put got revision {} and {}", revisions[0], revisions[1]));
        }
        for stream in &mut self.open {
            stream.settle(schema, revisions[0])?;
            self.events += stream.forget();
        }
        Ok(())
    }
}

/// A request for a watcher of anything.
fn create(generator: &mut Generator) -> Value {
    let (key, end, near) = generator.watched();
    let (now, modern) = (generator.revision(), generator.modern());
    let rng = generator.rng();
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let mut fields = json!({"key": parse(&key)});
    if let Some(end) = end {
        fields["range_end"] = parse(&end);
    }
    let start = match rng.below(10) {
        0..7 => 0,
        7 => near,
        8 => now + 1 + rng.below(4) as i64,
        _ => now - rng.below(200) as i64,
    };
    // Older releases take a negative revision for none.
    let start = if modern { start } else { start.max(0) };
    if start != 0 {
        fields["start_revision"] = Value::from(start.to_string());
    }
    for (name, percent) in [("prev_kv", 50), ("progress_notify", 20), ("fragment", 20)] {
        if rng.chance(percent) {
            fields[name] = Value::from(true);
        }
    }
    if rng.chance(25) {
        fields["filters"] =
            rng.pick(&[json!(["NOPUT"]), json!(["NODELETE"]), json!(["NODELETE", "NOPUT"]), json!([])]).clone();
    }
    if (1..=now).contains(&start) {
        // It may be canceled by a compaction, and etcd keeps its id from then on, Tally does not (differences, "The id of a
        // watcher behind a compaction"): so it has one that nobody else gets.
        fields["watch_id"] = Value::from((LAGGING_ID + rng.below(1 << 40) as i64).to_string());
    } else if rng.chance(25) {
        fields["watch_id"] = Value::from((rng.below(6) as i64).to_string());
    }
    json!({"create_request": fields})
}

impl Stream {
    fn ask(&mut self, schema: &Schema, request: &Value) -> Result<(), String> {
        let text = request.to_string();
        if self.history.back() != Some(&text) {
            self.history.push_back(text);
        }
        if self.history.len() > 40 {
            self.history.pop_front();
        }
        let bytes = schema.encode("WatchRequest", request).unwrap();
        for side in &mut self.sides {
            match &mut side.sender {
                Sender::Grpc(requests) => requests.send(&bytes),
                Sender::Socket(socket) => socket.send(&request.to_string()),
                Sender::Lines { .. } => unreachable!("lines are asked all at once"),
            }
        }
        if let Some(create) = request.get("create_request") {
            self.asked += 1;
            let start = create["start_revision"].as_str().and_then(|text| text.parse().ok());
            self.future = self.future.max(start.unwrap_or(0));
            self.wait_created(schema)?;
        }
        Ok(())
    }

    fn wait_created(&mut self, schema: &Schema) -> Result<(), String> {
        let asked = self.asked;
        self.wait(schema, "creations answered", |stream| stream.sides.iter().all(|side| side.created >= asked))
    }

    /// Asks both, again and again, to tell how far they are, until they have told of at least this revision: while a watcher
    /// lags, etcd passes over the question.
    fn progress(&mut self, schema: &Schema, revision: i64) -> Result<(), String> {
        // A watcher that waits for a revision of the future keeps the stream silent; and etcd's for good, once a watcher of it
        // is behind a compaction (differences, "Progress").
        if self.future > revision || self.sides[0].compacted {
            return Ok(());
        }
        let begun = Instant::now();
        let far = |side: &Side| side.progress.get(&-1).is_some_and(|told| *told >= revision);
        while begun.elapsed() < PATIENCE {
            self.ask(schema, &json!({"progress_request": {}}))?;
            let until = Instant::now() + Duration::from_millis(50);
            while Instant::now() < until {
                if self.sides.iter().all(far) {
                    return Ok(());
                }
                self.take(schema, Duration::from_millis(2))?;
            }
            // That may only be known by now.
            if self.sides[0].compacted {
                return Ok(());
            }
        }
        Err(self.failed(&format!("progress told: {:?}", self.sides.each_ref().map(far))))
    }

    /// Cancels a watcher, which may not be there.
    fn cancel(&mut self, schema: &Schema, id: i64) -> Result<(), String> {
        let known = self.sides.iter().any(|side| side.progress.contains_key(&id));
        self.ask(schema, &json!({"cancel_request": {"watch_id": id.to_string()}}))?;
        if !known {
            return Ok(());
        }
        self.wait(schema, "canceled", |stream| stream.sides.iter().all(|side| !side.progress.contains_key(&id)))
    }

    fn settle(&mut self, schema: &Schema, revision: i64) -> Result<(), String> {
        self.wait(schema, "the same story", |stream| {
            stream.sides.iter().all(|side| side.ticked >= revision) && stream.sides[0].told == stream.sides[1].told
        })
    }

    fn wait(&mut self, schema: &Schema, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            self.take(schema, Duration::ZERO)?;
            if done(self) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(self.failed(&format!("not {what} after {PATIENCE:?}")));
            }
            self.take(schema, Duration::from_millis(2))?;
        }
    }

    /// Takes what has arrived; waits at most that long for each server to say something.
    fn take(&mut self, schema: &Schema, wait: Duration) -> Result<(), String> {
        self.sides.iter_mut().for_each(|side| side.take(schema, wait));
        match self.sides.iter().enumerate().find_map(|(index, side)| Some((index, side.wrong.clone()?))) {
            Some((index, wrong)) => Err(self.failed(&format!("{}: {wrong}", ["etcd", "tally"][index]))),
            None => Ok(()),
        }
    }

    fn failed(&self, what: &str) -> String {
        let mut out = format!("watch over {:?}: {what}", self.form);
        let ids: std::collections::BTreeSet<_> = self.sides.iter().flat_map(|side| side.told.keys()).collect();
        for id in ids {
            let told = self.sides.each_ref().map(|side| side.told.get(id).cloned().unwrap_or_default());
            if told[0] != told[1] {
                let at = told[0].iter().zip(&told[1]).take_while(|(a, b)| a == b).count();
                let rest = told.map(|told| (told.len(), told.get(at).map(Value::to_string)));
                out += &format!("\n  watcher {id} from entry {at} on:\n  etcd : {:?}\n  tally: {:?}", rest[0], rest[1]);
            }
        }
        let marks = self.sides.each_ref().map(|side| (side.created, side.ticked, side.progress.clone()));
        out += &format!("\n  created, ticked, progress: {marks:?}\n  asked before:");
        self.history.iter().for_each(|request| out += &format!("\n    {request}"));
        out
    }

    /// Forgets what was compared; gives how many events that was.
    fn forget(&mut self) -> u64 {
        let told = self.sides[0].told.values().flatten();
        let events = told.filter(|entry| entry.get("kv").is_some()).count() as u64;
        self.sides.iter_mut().for_each(|side| side.told.clear());
        events
    }
}

impl Side {
    fn open(peer: &mut Peer, form: Form, requests: &[Value]) -> Self {
        let (send, items) = channel();
        let sender = match form {
            Form::Grpc => Sender::Grpc(peer.grpc().open(METHOD, send)),
            Form::Socket => Sender::Socket(Client::new(peer.address()).socket("/v3/watch", send)),
            Form::Lines => {
                let bodies: Vec<String> = requests.iter().map(Value::to_string).collect();
                let request = Request::post("/v3/watch".to_owned(), bodies.join("\n"));
                Sender::Lines { _connection: Client::new(peer.address()).stream(&request, send) }
            }
        };
        let (told, progress, newest) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            sender,
            items,
            decode: form,
            told,
            created: 0,
            ticked: 0,
            progress,
            newest,
            compacted: false,
            wrong: None,
        }
    }

    fn take(&mut self, schema: &Schema, mut wait: Duration) {
        loop {
            let message = match self.items.recv_timeout(wait) {
                Ok(Item::Message(message)) => message,
                Ok(Item::End(ended)) => return self.wrong = Some(format!("the stream has ended: {ended:?}")),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => return self.wrong = Some("the stream is gone".to_owned()),
            };
            wait = Duration::ZERO;
            let response = match self.decode {
                Form::Grpc => schema.decode("WatchResponse", &message),
                Form::Socket | Form::Lines => match lines::result(&message) {
                    Ok(response) => response,
                    Err(wrong) => return self.wrong = Some(wrong),
                },
            };
            if let Err(wrong) = self.hear(response) {
                return self.wrong = Some(wrong);
            }
        }
    }

    fn hear(&mut self, mut response: Value) -> Result<(), String> {
        let number = |value: &Value| value.as_str().and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let id = number(&response["watch_id"]);
        let revision = number(&response["header"]["revision"]);
        let (created, canceled) = (response["created"] == true, response["canceled"] == true);
        let events = match response["events"].take() {
            Value::Array(events) => events,
            Value::Null => Vec::new(),
            other => return Err(format!("events are {other}")),
        };
        if created || canceled {
            self.created += usize::from(created);
            if !events.is_empty() {
                return Err(format!("events in {response}"));
            }
            let fields = response.as_object_mut().unwrap();
            fields.remove("events");
            // An id may be used again, for a watcher that begins anywhere.
            self.newest.remove(&id);
            if canceled {
                self.progress.remove(&id);
            } else {
                self.progress.insert(id, 0);
            }
            self.compacted |= fields.contains_key("compact_revision");
            fields["header"].as_object_mut().unwrap().remove("raft_term");
            self.told.entry(id).or_default().push(response);
            return Ok(());
        }
        if events.is_empty() {
            self.progress.entry(id).or_default();
            let told = self.progress.iter_mut().filter(|(watcher, _)| id == -1 || **watcher == id);
            told.for_each(|(_, told)| *told = revision);
            return Ok(());
        }
        let (mut first, mut last) = (i64::MAX, 0);
        for event in events {
            let at = number(&event["kv"]["mod_revision"]);
            if at < last || at > revision {
                return Err(format!("event of revision {at} after {last} in a response of revision {revision}"));
            }
            if self.progress.get(&id).is_some_and(|told| at <= *told) {
                return Err(format!("event of revision {at} for watcher {id} after progress {:?}", self.progress));
            }
            (first, last) = (first.min(at), at);
            if id == TICK_WATCHER {
                self.ticked = at;
            } else {
                self.told.entry(id).or_default().push(event);
            }
        }
        // The rest of a revision must not come in a response of its own, unless that was announced.
        let fragment = response["fragment"] == true;
        match self.newest.insert(id, (last, fragment)) {
            Some((before, false)) if first <= before => {
                Err(format!("watcher {id} was told of revision {first} in two responses"))
            }
            _ => Ok(()),
        }
    }
}
