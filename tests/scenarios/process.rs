//! The process: addresses that are taken, exit codes, and the drain.

use std::io::ErrorKind;
use std::net::TcpListener;

use attache::demo::standin::Action;
use attache_bootstrap::exit;
use attache_tests::app::Line;
use attache_tests::bytes::to_end;
use attache_tests::mesh::get;
use attache_tests::{Member, Mesh, Process, eventually, free_port};

use crate::ATTACHE;

/// Runs the program with these arguments to its end: its exit code and what it said.
async fn ends(arguments: &[&str]) -> (u8, String) {
    let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    let mut process = Process::start("attache", ATTACHE, &arguments, &[]);
    let code = process.ended().await.code().unwrap();
    (u8::try_from(code).unwrap(), process.log())
}

/// A web with a live connection to an api, and the arguments it was started with.
async fn live(arguments: &[&str]) -> (Mesh, Member, Member, Line) {
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").start().await;
    let web = mesh
        .service("web")
        .upstream("api")
        .arguments(arguments)
        .start()
        .await;
    let mut line = web.dial("api").await;
    assert_eq!(line.ask("hi").await.unwrap(), "api-1: hi");
    (mesh, api, web, line)
}

#[tokio::test]
async fn a_second_sidecar_on_the_same_address_ends_and_names_the_holder() {
    // With several workers each, whose sockets share an address among themselves.
    let two = ["--concurrency", "2"];
    let mesh = Mesh::start(ATTACHE).await;
    let api = mesh.service("api").arguments(&two).start().await;
    let admin = format!("127.0.0.1:{}", free_port());
    let consul = mesh.consul.address().to_string();
    let run = ["run", "--sidecar-for", "api-1", "--http-addr", &consul];
    let (code, said) = ends(&[&run[..], &["--admin-bind", &admin], &two].concat()).await;
    assert_eq!(code, exit::UNAVAILABLE, "{said}");
    let holder = format!("(pid {})", api.sidecar.pid().unwrap());
    assert!(
        said.contains(&api.public.to_string()) && said.contains(&holder),
        "{holder}: {said}"
    );
    // The first one goes on.
    assert!(api.admin("/ready").await.starts_with("LIVE"));
}

#[tokio::test]
async fn a_restarted_sidecar_takes_its_ports_back_at_once() {
    let (_mesh, _api, mut web, line) = live(&["--concurrency", "2"]).await;
    // Its old connections still linger in the kernel, and on this side even open.
    web.restart().await;
    web.ready().await;
    assert_eq!(web.ask("api", "hi").await, "api-1: hi");
    assert!(tokio::net::TcpStream::connect(web.public).await.is_ok());
    drop(line);
}

#[tokio::test]
async fn the_default_admin_port_moves_when_it_is_taken() {
    // Whoever holds it, it is taken.
    let _held = TcpListener::bind("127.0.0.1:19000");
    let mesh = Mesh::start(ATTACHE).await;
    let mut api = mesh.service("api").default_admin().launch().await;
    api.sidecar
        .says(&["the admin API moves to the next free port"])
        .await;
    api.admin_moved().await;
    assert!(api.admin.port() > 19_000, "{}", api.admin);
    api.ready().await;
}

#[tokio::test]
async fn an_admin_address_given_by_hand_must_be_free() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mesh = Mesh::start(ATTACHE).await;
    let (admin, consul) = (
        held.local_addr().unwrap().to_string(),
        mesh.consul.address().to_string(),
    );
    let (code, said) = ends(&[
        "run",
        "--sidecar-for",
        "api-1",
        "--http-addr",
        &consul,
        "--admin-bind",
        &admin,
    ])
    .await;
    assert_eq!(code, exit::UNAVAILABLE, "{said}");
    let holder = format!("(pid {})", std::process::id());
    assert!(
        said.contains(&admin) && said.contains(&holder),
        "{admin} {holder}: {said}"
    );
}

#[tokio::test]
async fn exit_codes_tell_a_wrong_command_line_from_a_missing_configuration() {
    let (code, said) = ends(&["run", "--sideways"]).await;
    assert_eq!(code, exit::USAGE, "{said}");
    assert!(said.contains("--sideways"), "{said}");

    let (code, said) = ends(&["run"]).await;
    assert_eq!(code, exit::CONFIG, "{said}");
    assert!(said.contains("--sidecar-for"), "{said}");

    let (code, said) = ends(&["--version"]).await;
    assert_eq!(code, exit::OK, "{said}");
}

#[tokio::test]
async fn a_drain_lets_live_connections_finish() {
    let (_mesh, _api, mut web, mut line) = live(&["--drain-time-s", "30"]).await;
    web.sidecar.signal("TERM").await;
    let ready = eventually("web drains", || async {
        let (status, body) = get(web.admin, "/ready").await?;
        (status != 200).then_some((status, body))
    })
    .await;
    assert_eq!(ready, (503, "DRAINING\n".to_owned()));
    eventually("web accepts nothing more", || async {
        let refused = Line::connect(web.upstreams["api"]).await.err()?;
        (refused.kind() == ErrorKind::ConnectionRefused).then_some(())
    })
    .await;
    assert_eq!(line.ask("still here").await.unwrap(), "api-1: still here");
    assert!(web.sidecar.is_running());
    drop(line);
    assert_eq!(web.sidecar.ended().await.code(), Some(0));
    let said = web.sidecar.log();
    assert!(
        said.contains("draining") && said.contains("both sides closed"),
        "{said}"
    );
}

#[tokio::test]
async fn a_denial_reaches_live_connections_during_a_drain() {
    let mesh = Mesh::start(ATTACHE).await;
    let slow = ["--drain-time-s", "300"];
    let mut api = mesh.service("api").arguments(&slow).start().await;
    let web = mesh.service("web").upstream("api").start().await;
    let mut line = web.dial("api").await;
    assert_eq!(line.ask("hi").await.unwrap(), "api-1: hi");
    api.sidecar.signal("TERM").await;
    api.sidecar.says(&["draining"]).await;
    mesh.consul.set_intention("web", "api", Action::Deny);
    assert_eq!(line.hear().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Nothing is left: the drain is over long before its deadline.
    assert_eq!(api.sidecar.ended().await.code(), Some(0));
    api.sidecar
        .says(&["access", "newer rules deny it", "web -> api: deny"])
        .await;
}

#[tokio::test]
async fn the_drains_deadline_cuts_what_is_left() {
    let (_mesh, _api, mut web, line) = live(&["--drain-time-s", "1"]).await;
    web.sidecar.signal("TERM").await;
    let (_, ended) = to_end(&mut line.into_stream()).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(web.sidecar.ended().await.code(), Some(0));
    let said = web.sidecar.log();
    assert!(said.contains("still open at the end of the drain"), "{said}");
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once_and_cuts_what_is_left() {
    // The drain alone would last longer than the patience of the test.
    let (_mesh, _api, mut web, line) = live(&["--drain-time-s", "300"]).await;
    web.sidecar.signal("TERM").await;
    web.sidecar.says(&["draining"]).await;
    web.sidecar.signal("TERM").await;
    let (_, ended) = to_end(&mut line.into_stream()).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(web.sidecar.ended().await.code(), Some(0));
    let said = web.sidecar.log();
    assert!(said.contains("a second signal"), "{said}");
}

#[tokio::test]
async fn a_drain_without_connections_is_over_at_once() {
    let (_mesh, _api, mut web, line) = live(&["--drain-time-s", "300"]).await;
    drop(line);
    web.sidecar.says(&["access", "both sides closed"]).await;
    web.sidecar.signal("INT").await;
    assert_eq!(web.sidecar.ended().await.code(), Some(0));
}

/// Connects from many threads until refused: how many were served. Panics at a reset.
fn storm(at: std::net::SocketAddr) -> Vec<tokio::task::JoinHandle<u32>> {
    let client = move || {
        let mut served = 0;
        loop {
            match std::net::TcpStream::connect(at) {
                Ok(mut stream) => {
                    use std::io::{Read, Write};
                    stream.write_all(b"hi\n").unwrap();
                    let mut heard = [0; 9];
                    stream.read_exact(&mut heard).unwrap();
                    assert_eq!(&heard, b"api-1: hi");
                    served += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                    return served;
                }
            }
        }
    };
    (0..16).map(|_| tokio::task::spawn_blocking(client)).collect()
}

async fn stops_under_a_storm(workers: &str) {
    let (_mesh, _api, mut web, line) = live(&["--concurrency", workers, "--drain-time-s", "30"]).await;
    drop(line);
    let clients = storm(web.upstreams["api"]);
    eventually("the storm is served", || async {
        let opened = web.metric("envoy_listener_downstream_cx_total", &[]).await;
        (opened > 100.0).then_some(())
    })
    .await;
    web.sidecar.signal("TERM").await;
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    assert_eq!(web.sidecar.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_stop_serves_or_refuses_and_resets_nobody() {
    stops_under_a_storm("1").await;
}

#[tokio::test]
async fn a_stop_of_two_workers_serves_or_refuses_and_resets_nobody() {
    stops_under_a_storm("2").await;
}

#[tokio::test]
async fn a_stopped_app_is_not_waited_for_by_its_callers() {
    let mesh = Mesh::start(ATTACHE).await;
    let (mut first, second) = (
        mesh.service("api").id("api-1").start().await,
        mesh.service("api").id("api-2").start().await,
    );
    let web = mesh.service("web").upstream("api").start().await;
    web.eventually_hears("api", "api-1").await;
    web.eventually_hears("api", "api-2").await;
    // As Nomad does: the app first, its sidecar later. Consul says nothing yet.
    first.app.stop().await;
    for _ in 0..20 {
        assert_eq!(web.ask("api", "hi").await, "api-2: hi");
    }
    drop((first, second));
}
