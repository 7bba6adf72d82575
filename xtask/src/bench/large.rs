//! Measurements that need a large store: counting, listing, restarting, memory, and puts while a list runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::closed::{self, Times};
use super::hist::Histogram;
use super::keys::{VALUE_BYTES, base64, sorted_keys};
use super::load::{self, Length};
use super::sample::Sample;
use super::work::{Kind, Work};
use crate::error::{Error, Result};
use crate::http::Client;
use crate::node::Plan;
use crate::procfs;

/// Keys in one page of a list.
const PAGE_KEYS: usize = 500;
/// Clients that fill the store.
const FILL_CLIENTS: usize = 256;
/// Clients that put while a list runs.
const PUT_CLIENTS: usize = 64;
/// So many times in turn they put without a list and with one.
const PUT_TURNS: u32 = 4;
/// Counting goes on for so many requests or so long, whatever comes first.
const COUNTS: usize = 200;
const COUNT_TIME: Duration = Duration::from_secs(5);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fills a store and measures everything on it. Puts come last, and only to keys that exist: until then the store
/// holds exactly one revision of each key.
pub(crate) fn measure(plan: &Plan, keys: u32, times: Times, seed: u64) -> Result<Sample> {
    let mut sample = Sample::default();
    let sorted = sorted_keys(keys);
    let mut node = plan.start()?;
    node.wait_ready()?;
    sample.add("fill_rate", fill(plan, keys, seed)?);
    sample.add("rss_fill_mib", closed::mebibytes(procfs::rss_bytes(node.pid())?));
    sample.add("count_ms", count(plan, keys)?.as_secs_f64() * 1e3);
    node.stop()?;

    let mut node = plan.start()?;
    let mut body = br#"{"key":""#.to_vec();
    base64(&sorted[sorted.len() / 2], &mut body);
    body.extend_from_slice(br#""}"#);
    sample.add("restart_s", node.wait_for_read(&body)?.as_secs_f64());
    let mut pages = Histogram::new();
    let begun = Instant::now();
    list(plan, &sorted, &mut pages, &AtomicBool::new(false))?;
    sample.add("list_s", begun.elapsed().as_secs_f64());
    sample.add("page_p50", pages.quantile(0.5).as_secs_f64() * 1e6);
    sample.add("page_p99", pages.quantile(0.99).as_secs_f64() * 1e6);
    sample.add("rss_mib", closed::mebibytes(procfs::rss_bytes(node.pid())?));

    // By turns: the machine is not equally fast at all times, and it is the ratio that counts.
    let times = Times { window: times.window / PUT_TURNS, ..times };
    let (mut alone, mut during, mut listed) = (Histogram::new(), Histogram::new(), 0);
    for turn in 0..u64::from(PUT_TURNS) {
        alone.merge(&put(plan, keys, times, seed ^ (2 * turn))?);
        let (pages, latency) = put_while_listing(plan, keys, &sorted, times, seed ^ (2 * turn + 1))?;
        during.merge(&latency);
        listed += pages;
    }
    let p99 = |latency: &Histogram| latency.quantile(0.99).as_secs_f64() * 1e6;
    let (alone, during) = (p99(&alone), p99(&during));
    sample.add("put_p99", alone);
    sample.add("put_p99_list", during);
    sample.add("put_p99_ratio", during / alone.max(1e-9));
    sample.add("listed_keys", (listed * PAGE_KEYS as u64) as f64);
    node.stop()?;
    Ok(sample)
}

/// Puts every key by itself; gives keys per second. Large transactions would be no quicker for etcd, and would leave it
/// with a log that it has to read again at its next start and keeps in memory, which no client's puts do.
fn fill(plan: &Plan, keys: u32, seed: u64) -> Result<f64> {
    let mut work = Work::new(Kind::Load, keys, seed);
    let measured = load::run(&[plan.client], FILL_CLIENTS, Length::Requests(u64::from(keys)), &mut work, || Ok(()))?;
    Ok(measured.rate())
}

/// The median time of counting every key.
fn count(plan: &Plan, keys: u32) -> Result<Duration> {
    let mut client = Client::new(plan.client, PATIENCE);
    let wanted = format!("\"count\":\"{keys}\"");
    let mut histogram = Histogram::new();
    let begun = Instant::now();
    for round in 0..=COUNTS {
        let asked = Instant::now();
        let body = br#"{"key":"AA==","range_end":"AA==","count_only":true}"#;
        let (status, answer) = client.post("/v3/kv/range", body).map_err(Error::network("count"))?;
        let took = asked.elapsed();
        let text = String::from_utf8_lossy(answer);
        if status != 200 || !text.contains(&wanted) {
            return Err(Error::Answer(format!("counting {keys} keys was answered with {status}: {text}")));
        }
        // The first one may find cold caches.
        if round > 0 {
            histogram.add(took);
        }
        if begun.elapsed() > COUNT_TIME && round > 0 {
            break;
        }
    }
    Ok(histogram.quantile(0.5))
}

/// Reads every key in pages, each beginning behind the last key of the one before; checks where each page ends. Ends
/// early once `stop` is set.
fn list(plan: &Plan, sorted: &[Vec<u8>], pages: &mut Histogram, stop: &AtomicBool) -> Result<()> {
    let mut client = Client::new(plan.client, PATIENCE);
    let (mut body, mut from) = (Vec::new(), b"\0".to_vec());
    for page in sorted.chunks(PAGE_KEYS) {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(wanted) = page.last() else { break };
        body.clear();
        body.extend_from_slice(br#"{"key":""#);
        base64(&from, &mut body);
        body.extend_from_slice(br#"","range_end":"AA==","limit":500}"#);
        let asked = Instant::now();
        let (status, answer) = client.post("/v3/kv/range", &body).map_err(Error::network("list"))?;
        pages.add(asked.elapsed());
        let last = last_key(answer);
        if status != 200 || answer.len() < page.len() * VALUE_BYTES || last.as_ref() != Some(wanted) {
            let shown = String::from_utf8_lossy(&answer[..answer.len().min(300)]);
            return Err(Error::Answer(format!("a page of a list was answered with {status}: {shown}")));
        }
        from.clone_from(wanted);
        from.push(0);
    }
    Ok(())
}

/// The last key in the body of an answer to a range.
fn last_key(body: &[u8]) -> Option<Vec<u8>> {
    const MARK: &[u8] = br#""key":""#;
    let at = body.windows(MARK.len()).rposition(|found| found == MARK)? + MARK.len();
    let length = body[at..].iter().position(|byte| *byte == b'"')?;
    base64_simd::STANDARD.decode_to_vec(&body[at..at + length]).ok()
}

/// How long puts take.
fn put(plan: &Plan, keys: u32, times: Times, seed: u64) -> Result<Histogram> {
    let mut work = Work::new(Kind::Put, keys, seed ^ 0x5a5a);
    let measured = load::run(&[plan.client], PUT_CLIENTS, times.length(), &mut work, || Ok(()))?;
    Ok(measured.latency)
}

/// The same while one client lists all keys again and again; also how many pages it got meanwhile.
fn put_while_listing(plan: &Plan, keys: u32, sorted: &[Vec<u8>], times: Times, seed: u64) -> Result<(u64, Histogram)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let lister = scope.spawn(|| {
            let mut pages = Histogram::new();
            while !stop.load(Ordering::Relaxed) {
                list(plan, sorted, &mut pages, &stop)?;
            }
            Ok(pages.count())
        });
        let measured = put(plan, keys, times, seed);
        stop.store(true, Ordering::Relaxed);
        let listed = lister.join().map_err(|_| Error::Check("the listing client panicked".to_owned()))?;
        Ok((listed?, measured?))
    })
}

#[cfg(test)]
mod tests {
    use super::last_key;

    #[test]
    fn the_last_key_of_a_page() {
        let body = br#"{"kvs":[{"key":"YQ==","value":"eA=="},{"key":"Yg==","value":"eA=="}],"count":"2"}"#;
        assert_eq!(last_key(body).as_deref(), Some(&b"b"[..]));
        assert_eq!(last_key(b"{}"), None);
    }
}
