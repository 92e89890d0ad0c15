use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::ask::tests::guard;

/// What has to come comes long before.
const DEADLINE: Duration = Duration::from_secs(20);

/// What is registered, by metric: in all namespaces the same.
#[derive(Default)]
struct Texts(Mutex<HashMap<String, String>>);

impl Sources for Texts {
    fn find(&self, _namespace: &str, metric: &str) -> Result<Registered, String> {
        let texts = self.0.lock();
        let text = texts.get(metric).ok_or("it is not registered")?;
        Ok(Registered {
            source: Arc::new(Source::parse(text)?),
            guard: guard(),
        })
    }
}

impl Texts {
    fn put(&self, metric: &str, address: SocketAddr) {
        let text = format!("{{url: 'http://{address}/{metric}', path: count, period: 1s}}");
        self.0.lock().insert(metric.to_owned(), text);
    }
}

/// A server that answers with how often it was asked, unless it hangs; and how often that was.
async fn server(hangs: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
            if hangs {
                kept.push(stream);
                continue;
            }
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await;
            assert!(read.expect("a request") > 0);
            let answer = format!("HTTP/1.1 200 OK\r\n\r\n{{\"count\": {count}}}");
            stream.write_all(answer.as_bytes()).await.expect("a reader");
        }
    });
    (address, count)
}

fn value(answer: &Answer) -> Option<f64> {
    Some(answer.as_ref().ok()?.series.first()?.value)
}

#[tokio::test]
async fn a_source_is_asked_once_per_period_however_many_want_it() {
    let (address, count) = server(false).await;
    let texts = Arc::new(Texts::default());
    texts.put("a", address);
    let external = External::new(texts.clone());
    assert_eq!(count.load(Ordering::Relaxed), 0, "nobody wants it yet");
    let mut news = external.subscribe();
    let began = Instant::now();
    for _ in 0..20 {
        let answer = external.get("default", "a", CLIENTS_WAIT).await;
        assert!(value(&answer).is_some(), "{answer:?}");
    }
    let asked = count.load(Ordering::Relaxed);
    let periods = usize::try_from(began.elapsed().as_secs()).expect("few");
    assert!(asked <= 1 + periods, "{asked} times within {periods} s");
    // It is asked again by itself, and says so.
    for _ in 0..2 {
        let heard = tokio::time::timeout(DEADLINE, news.recv()).await;
        assert_eq!(&*heard.expect("in time").expect("news"), "default");
    }
    assert!(value(&external.get("default", "a", CLIENTS_WAIT).await) >= Some(2.0));
}

#[tokio::test]
async fn what_is_registered_anew_is_asked_anew_and_what_is_not_is_not() {
    let ((one, first), (two, second)) = (server(false).await, server(false).await);
    let texts = Arc::new(Texts::default());
    let external = External::new(texts.clone());
    let why = external
        .get("default", "a", CLIENTS_WAIT)
        .await
        .expect_err("nothing there");
    assert_eq!(
        why,
        NoAnswer::Unregistered("it is not registered".to_owned())
    );
    assert!(external.shared.namespaces.lock().is_empty());
    texts.put("a", one);
    assert!(external.get("default", "a", CLIENTS_WAIT).await.is_ok());
    texts.put("a", two);
    assert!(external.get("default", "a", CLIENTS_WAIT).await.is_ok());
    let asked = [first, second].map(|count| count.load(Ordering::Relaxed) > 0);
    assert_eq!(asked, [true, true]);
    texts.0.lock().clear();
    assert!(external.get("default", "a", CLIENTS_WAIT).await.is_err());
    assert!(external.shared.namespaces.lock().is_empty());
}

#[tokio::test]
async fn nobody_waits_for_the_sources_of_another_namespace() {
    let ((mute, _), (good, _)) = (server(true).await, server(false).await);
    let texts = Arc::new(Texts::default());
    for number in 0..METRICS {
        texts.put(&format!("mute{number}"), mute);
    }
    texts.put("good", good);
    texts.put("mute", mute);
    let external = External::new(texts);
    let waiting = (0..METRICS).map(|number| {
        let external = external.clone();
        tokio::spawn(async move {
            external
                .get("hostile", &format!("mute{number}"), CLIENTS_WAIT)
                .await
        })
    });
    let waiting: Vec<_> = waiting.collect();
    let asked = tokio::time::timeout(PATIENCE / 2, external.get("default", "good", CLIENTS_WAIT));
    assert!(value(&asked.await.expect("at once")).is_some());
    for one in waiting {
        let why = one.await.expect("no panic").expect_err("it hangs");
        assert!(why.to_string().contains("no answer"), "{why}");
    }
    let why = external
        .get("hostile", "mute", CLIENTS_WAIT)
        .await
        .expect_err("too many");
    assert!(why.to_string().contains("no more may be"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_is_forgotten() {
    let texts = Arc::new(Texts::default());
    // Nobody listens there.
    texts.put("a", SocketAddr::from(([127, 0, 0, 1], 1)));
    let external = External::new(texts);
    assert!(external.get("default", "a", CLIENTS_WAIT).await.is_err());
    let forgotten = async {
        while !external.shared.namespaces.lock().is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let began = Instant::now();
    let forgotten = tokio::time::timeout(2 * UNWANTED, forgotten).await;
    forgotten.expect("in time");
    assert!(began.elapsed() >= UNWANTED / 2);
}
