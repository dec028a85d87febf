//! Memory under long bodies: a proxy holds what its buffers allow, however much goes through it, in however small
//! pieces, and however slowly one side takes it; and it lets go of what nobody waits for any more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use attache_tests::envoy::Static;
use attache_tests::http::bulk::{App, Line, PIECE, Upload, settled};
use attache_tests::http::case::Version;
use attache_tests::http::config::{listener_name, with_ports};
use attache_tests::http::{Manager, Path, cluster};
use attache_tests::{eventually, free_port};
use serde_json::{Value, json};

use crate::xds_mesh::OURS;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// One way through the proxy: hundreds of times what it may hold.
const LONG: u64 = 64 * MIB;

/// What a proxy may gain by carrying bodies one after the other; some 3 MiB are usual.
const FLAT: u64 = 16 * MIB;

/// Slow readers, or uploads to an app that is stuck.
const SLOW: usize = 20;

/// What each of them is sent: dozens of times what may be held of it.
const TOO_MUCH: u64 = 64 * MIB;

/// What a stream that nobody reads may hold: 256 KiB that were received over HTTP/2 and are not acknowledged, as many
/// that wait to be sent, a block or two on their way, and the rest of the blocks that those are parts of.
const STREAM: u64 = MIB;

/// Of pieces as small as these, a frame of HTTP/2 each, thousands are received at once.
const TINY: usize = 10;

/// Nothing moves any more.
const QUIET: Duration = Duration::from_millis(300);

/// Windows of an app's HTTP/2.
const WINDOWS: u32 = 1 << 20;

/// A proxy before the app.
struct Bed {
    proxy: Static,
    app: App,
    ports: BTreeMap<String, u16>,
    before: u64,
}

impl Bed {
    async fn start() -> Self {
        let app = App::start(Some(WINDOWS)).await;
        let manager = Manager::new("main").routes(json!([
            { "match": { "prefix": "/" }, "route": { "cluster": "a", "timeout": "0s" } },
        ]));
        let clusters = [cluster("a")];
        let mut ports = BTreeMap::from([("a".to_owned(), app.address.port())]);
        let mut listeners = Vec::new();
        let mut resources = Vec::new();
        for upstream in [Version::H1, Version::H2] {
            ports.insert(listener_name("main", upstream), free_port());
            listeners.push(manager.listener(upstream, &clusters));
            resources.push(clusters[0].resource(upstream));
        }
        let all: Value = json!({ "listeners": listeners, "clusters": resources });
        let all = with_ports(&all, &|name| ports[name]);
        let proxy = Static::start(OURS, &all).await.unwrap();
        let before = proxy.process.resident_bytes();
        Self {
            proxy,
            app,
            ports,
            before,
        }
    }

    fn at(&self, upstream: Version) -> SocketAddr {
        let port = self.ports[&listener_name("main", upstream)];
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    async fn line(&self, path: Path) -> Line {
        Line::open(self.at(path.upstream), path.downstream).await
    }

    /// The app hears that so many requests were given up, and the proxy has so many left under way.
    async fn has_let_go(&self, what: &str, of: usize, left: u32) {
        eventually(&format!("{what}: let go"), || async {
            let active = self
                .proxy
                .metric("envoy_cluster_upstream_rq_active", &["\"a"])
                .await;
            (active == Some(f64::from(left))).then_some(())
        })
        .await;
        eventually(&format!("{what}: the app hears of it"), || async {
            (self.app.cut() == of).then_some(())
        })
        .await;
    }

    /// The proxy has not gained more than this since its start, at any time.
    fn gained_at_most(&self, bytes: u64, what: &str) {
        let peak = self.proxy.process.peak_bytes().saturating_sub(self.before);
        println!(
            "{what}: {} KiB, and at most {} KiB more",
            self.before / KIB,
            peak / KIB
        );
        assert!(peak <= bytes, "{what}: {peak} bytes gained, {bytes} are allowed");
    }
}

/// So many bytes down, so many up, each of them where it belongs.
async fn carries(bed: &Bed, path: Path, bytes: u64, piece: usize) {
    let line = bed.line(path).await;
    let answer = line.down_in_pieces(bytes, piece).await;
    assert_eq!(answer.read().await, Ok(bytes), "{path} down");
    let mut upload = line.up_in_pieces("/up", bytes, piece).await;
    assert_eq!(upload.send().await, Ok(()), "{path} up");
    assert_eq!(
        upload.answer().await.text().await,
        Ok(bytes.to_string()),
        "{path} up"
    );
}

async fn carries_flatly(bytes: u64) {
    for path in Path::ALL {
        let bed = Bed::start().await;
        carries(&bed, path, bytes, PIECE).await;
        let what = format!("{path}, {} MiB each way", bytes / MIB);
        bed.gained_at_most(FLAT, &what);
    }
}

#[tokio::test]
async fn long_bodies_pass_through_little_memory() {
    carries_flatly(LONG).await;
}

#[tokio::test]
#[ignore = "half a minute and more of both cores: 8 GiB go through"]
async fn a_gibibyte_each_way_passes_through_little_memory() {
    carries_flatly(1024 * MIB).await;
}

#[tokio::test]
async fn slow_readers_are_held_little_for() {
    for path in Path::ALL {
        let bed = Bed::start().await;
        let mut slow = Vec::new();
        for _ in 0..SLOW {
            let line = Line::open_with(bed.at(path.upstream), path.downstream, 65_535).await;
            slow.push((line.down(TOO_MUCH).await, line));
        }
        settled(QUIET, || bed.app.sent()).await;
        bed.gained_at_most(SLOW as u64 * STREAM, &format!("{path}, {SLOW} slow readers"));
    }
}

/// Uploads to an app that reads nothing, of which the proxy takes no more.
async fn stuck(bed: &Bed, path: Path, count: usize) -> Vec<(Upload, Line)> {
    let mut uploads = Vec::new();
    for _ in 0..count {
        let line = bed.line(path).await;
        let mut upload = line.up("/stuck", TOO_MUCH).await;
        let taken = upload.stuff(Duration::from_millis(60)).await;
        assert!(taken < TOO_MUCH, "{path}: nothing holds the upload back");
        uploads.push((upload, line));
    }
    uploads
}

#[tokio::test]
async fn uploads_to_a_stuck_app_are_held_back() {
    for path in Path::ALL {
        let bed = Bed::start().await;
        let _uploads = stuck(&bed, path, SLOW).await;
        let what = format!("{path}, {SLOW} uploads to a stuck app");
        bed.gained_at_most(SLOW as u64 * STREAM, &what);
    }
}

/// Those who wait behind a stuck app and leave are noticed, although the app reads nothing. Envoy 1.40 notices it over
/// HTTP/2 alone: while it does not read a connection of HTTP/1 a reset of it goes unseen.
#[tokio::test]
async fn who_leaves_a_stuck_upload_is_noticed_at_once() {
    const LEAVING: usize = 5;
    for path in Path::ALL {
        let bed = Bed::start().await;
        let uploads = stuck(&bed, path, LEAVING).await;
        eventually("the app has them all", || async {
            (bed.app.begun() == LEAVING).then_some(())
        })
        .await;
        assert_eq!(bed.app.cut(), 0, "{path}: they are under way");
        // An end in order would wait in the client's kernel, behind what nobody takes.
        for (upload, _line) in uploads {
            upload.reset();
        }
        let what = format!("{path}: they left");
        bed.has_let_go(&what, LEAVING, 0).await;
        carries(&bed, path, 64 * KIB, PIECE).await;
    }
}

/// So is who ends in order, as far as the proxy's kernel has the end.
#[tokio::test]
async fn an_end_behind_bytes_that_nobody_takes_is_noticed() {
    let path = Path::H1_H2;
    let bed = Bed::start().await;
    let _takes_the_window = stuck(&bed, path, 1).await;
    let line = bed.line(path).await;
    let mut upload = line.up("/stuck", TOO_MUCH).await;
    // More than the proxy takes of it, less than its kernel has room for.
    upload.send_some(96 * KIB).await.unwrap();
    eventually("the app has it", || async {
        (bed.app.begun() == 2).then_some(())
    })
    .await;
    assert_eq!(bed.app.cut(), 0, "it is under way");
    upload.walk_away().await;
    let what = "an end behind bytes that nobody takes";
    bed.has_let_go(what, 1, 1).await;
}

#[tokio::test]
async fn small_frames_are_as_good_as_large_ones() {
    for path in [Path::H2_H2, Path::H2_H1, Path::H1_H2] {
        let bed = Bed::start().await;
        carries(&bed, path, 256 * KIB, TINY).await;
        bed.gained_at_most(FLAT, &format!("{path} in pieces of {TINY} bytes"));
    }
}

#[tokio::test]
async fn slow_readers_of_small_frames_do_not_cost_others_their_connection() {
    const READERS: usize = 6;
    for path in [Path::H2_H2, Path::H1_H2] {
        let bed = Bed::start().await;
        let mut slow = Vec::new();
        for _ in 0..READERS {
            let line = Line::open_with(bed.at(path.upstream), path.downstream, 65_535).await;
            // Over HTTP/1 the sockets take some MiB of it.
            let answer = line.down_in_pieces(8 * MIB, TINY).await;
            slow.push((answer, line));
        }
        settled(QUIET, || bed.app.sent()).await;
        carries(&bed, path, 64 * KIB, PIECE).await;
        assert_eq!((bed.app.cut(), bed.app.connections()), (0, 1), "{path}");
        let what = format!("{path}, {READERS} slow readers of pieces of {TINY} bytes");
        bed.gained_at_most(FLAT, &what);
    }
}

#[tokio::test]
async fn a_stream_that_lives_long_does_not_hold_what_it_has_sent() {
    /// Just less than what is kept of a request for another try.
    const SENT: u64 = 1000 * KIB;
    for path in Path::ALL {
        let bed = Bed::start().await;
        let mut streams = Vec::new();
        for number in 1..=SLOW as u64 {
            let line = bed.line(path).await;
            let upload = line.up("/early", 2 * SENT).await;
            let mut upload = upload.answered().await;
            upload.send_some(SENT).await.unwrap();
            eventually("the app has read it", || async {
                (bed.app.received() == number * SENT).then_some(())
            })
            .await;
            streams.push((upload, line));
        }
        bed.gained_at_most(
            SLOW as u64 * SENT / 2,
            &format!("{path}, {SLOW} streams under way"),
        );
    }
}
