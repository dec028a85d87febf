//! How connections end: an end stays an end, a reset stays a reset, a cut never looks complete.

use std::io::ErrorKind;
use std::time::Duration;

use attache_tests::bytes::{pattern, reset, to_end};
use attache_tests::{App, Member, Mesh};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ATTACHE;

/// A path whose writer had no progress for this long is full.
const STALL: Duration = Duration::from_millis(500);

/// An api whose connections the scenario serves, a web that dials it, and one connection's two ends.
struct Pair {
    _mesh: Mesh,
    api: Member,
    web: Member,
    client: TcpStream,
    app: TcpStream,
}

async fn pair() -> Pair {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").app(App::by_hand().await).start().await;
    let web = mesh.service("web").upstream("api").start().await;
    let mut client = web.dial("api").await.into_stream();
    // Once a byte has come through both ways, the whole path stands.
    client.write_all(b"?").await.unwrap();
    let mut app = api.app.accept().await;
    let mut byte = [0];
    app.read_exact(&mut byte).await.unwrap();
    app.write_all(b"!").await.unwrap();
    client.read_exact(&mut byte).await.unwrap();
    Pair {
        _mesh: mesh,
        api,
        web,
        client,
        app,
    }
}

#[tokio::test]
async fn the_server_answers_after_the_client_has_ended() {
    let mut pair = pair().await;
    pair.client.write_all(b"a question").await.unwrap();
    pair.client.shutdown().await.unwrap();
    let (heard, ended) = to_end(&mut pair.app).await;
    ended.unwrap();
    assert_eq!(heard, b"a question");

    let answer = pattern(1, 1 << 20);
    let answering = async {
        pair.app.write_all(&answer).await.unwrap();
        pair.app.shutdown().await.unwrap();
    };
    let ((heard, ended), ()) = tokio::join!(to_end(&mut pair.client), answering);
    ended.unwrap();
    assert!(heard == answer);
    let line = pair.api.sidecar.says(&["access", "both sides closed"]).await;
    assert!(line.contains("flags=\"-\""), "{line}");
}

#[tokio::test]
async fn the_client_goes_on_after_the_server_has_ended() {
    let mut pair = pair().await;
    pair.app.write_all(b"all there is").await.unwrap();
    pair.app.shutdown().await.unwrap();
    let (heard, ended) = to_end(&mut pair.client).await;
    ended.unwrap();
    assert_eq!(heard, b"all there is");

    let thanks = pattern(2, 1 << 20);
    let thanking = async {
        pair.client.write_all(&thanks).await.unwrap();
        pair.client.shutdown().await.unwrap();
    };
    let ((heard, ended), ()) = tokio::join!(to_end(&mut pair.app), thanking);
    ended.unwrap();
    assert!(heard == thanks);
    pair.web.sidecar.says(&["access", "both sides closed"]).await;
}

#[tokio::test]
async fn a_client_that_ends_before_the_path_stands_gets_its_answer() {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").app(App::by_hand().await).start().await;
    let web = mesh.service("web").upstream("api").start().await;
    let mut client = web.dial("api").await.into_stream();
    client.write_all(b"a question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut app = api.app.accept().await;
    let (heard, ended) = to_end(&mut app).await;
    ended.unwrap();
    assert_eq!(heard, b"a question");
    app.write_all(b"an answer").await.unwrap();
    drop(app);
    let (heard, ended) = to_end(&mut client).await;
    ended.unwrap();
    assert_eq!(heard, b"an answer");
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_app_as_one() {
    let mut pair = pair().await;
    reset(pair.client);
    let (_, ended) = to_end(&mut pair.app).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let line = pair.api.sidecar.says(&["access", "downstream: "]).await;
    assert!(line.contains("flags=\"DC\""), "{line}");
}

#[tokio::test]
async fn a_reset_of_the_app_reaches_the_client_as_one() {
    let mut pair = pair().await;
    reset(pair.app);
    let (_, ended) = to_end(&mut pair.client).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let line = pair.web.sidecar.says(&["access", "upstream: "]).await;
    assert!(line.contains("flags=\"UC\""), "{line}");
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_still_a_reset() {
    let mut pair = pair().await;
    pair.client.shutdown().await.unwrap();
    to_end(&mut pair.app).await.1.unwrap();
    pair.app.write_all(b"half an answer").await.unwrap();
    reset(pair.app);
    let (_, ended) = to_end(&mut pair.client).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_killed_sidecar_of_the_client_cuts_an_upload() {
    let mut pair = pair().await;
    let mut client = pair.client;
    let uploading = tokio::spawn(async move {
        let block = pattern(3, 64 * 1024);
        while client.write_all(&block).await.is_ok() {}
    });
    pair.app.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    pair.web.sidecar.signal("KILL").await;
    let (_, ended) = to_end(&mut pair.app).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    uploading.await.unwrap();
}

#[tokio::test]
async fn a_killed_sidecar_of_the_app_cuts_a_download() {
    let mut pair = pair().await;
    let mut app = pair.app;
    let downloading = tokio::spawn(async move {
        let block = pattern(4, 64 * 1024);
        while app.write_all(&block).await.is_ok() {}
    });
    pair.client.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    pair.api.sidecar.signal("KILL").await;
    let (_, ended) = to_end(&mut pair.client).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    downloading.await.unwrap();
}

#[tokio::test]
async fn a_killed_sidecar_cuts_an_idle_connection_too() {
    let mut pair = pair().await;
    pair.api.sidecar.signal("KILL").await;
    let (_, ended) = to_end(&mut pair.client).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_killed_sidecar_resets_its_own_app_as_well() {
    let mut pair = pair().await;
    pair.api.sidecar.signal("KILL").await;
    let (_, ended) = to_end(&mut pair.app).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_behind_bytes_that_nobody_reads_is_found_at_their_end() {
    let mut pair = pair().await;
    let block = pattern(14, 64 * 1024);
    // Until every buffer on the path is full.
    while let Ok(written) = timeout(STALL, pair.client.write(&block)).await {
        written.unwrap();
    }
    reset(pair.client);
    let (_, ended) = to_end(&mut pair.app).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}
