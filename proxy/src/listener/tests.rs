//! Listeners over real sockets, from hand-made snapshots: how sockets come, change hands and end.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};

use super::manager::StopListeners;
use super::testing::{Proxy, app, free, hears, listener, refused, snapshot, tcp};
use super::worker::Drained;
use crate::model::listener::{Address, Direction, Listener};

#[tokio::test]
async fn a_renamed_listener_takes_the_socket_over_without_a_gap() {
    let (one, two, at) = (app("one").await, app("two").await, free());
    let mut proxy = Proxy::new(2);
    let first = snapshot(vec![listener("a:x", tcp(at))], &[("app", one)]);
    proxy.serve(first, hears(at, "one")).await;
    // Other clients never see it closed; 0 of them fail while it changes hands.
    let second = snapshot(vec![listener("b:x", tcp(at))], &[("app", two)]);
    let storm = async {
        let mut heard = [0; 3];
        while heard != *b"two" {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.read_exact(&mut heard).await.unwrap();
        }
    };
    proxy.serve(second, storm).await;
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_leaves_the_old_one() {
    let (one, old) = (app("one").await, free());
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap();
    let mut proxy = Proxy::new(1);
    let first = snapshot(vec![listener("a", tcp(old))], &[("app", one)]);
    proxy.serve(first, hears(old, "one")).await;
    let second = snapshot(vec![listener("a", tcp(taken))], &[("app", one)]);
    let errors = proxy.manager.apply(&second);
    let said = errors[0].to_string();
    assert!(
        said.contains(&format!("{taken} (a) cannot be bound")) && said.contains(&format!("{old} goes on")),
        "{said}"
    );
    hears(old, "one").await;
    drop(held);
    assert!(proxy.manager.apply(&second).is_empty());
    hears(taken, "one").await;
    refused(old).await;
}

#[tokio::test]
async fn two_listeners_of_one_address_are_told_and_one_serves() {
    let (one, at) = (app("one").await, free());
    let mut proxy = Proxy::new(1);
    let first = snapshot(vec![listener("b", tcp(at))], &[("app", one)]);
    assert!(proxy.manager.apply(&first).is_empty());
    let both = vec![listener("a", tcp(at)), listener("b", tcp(at))];
    let errors = proxy.manager.apply(&snapshot(both, &[("app", one)]));
    // The one that has it keeps it.
    assert_eq!((errors.len(), &*errors[0].listener), (1, "a"));
    assert_eq!(
        errors[0].holder.as_deref(),
        Some("listener b of the same configuration")
    );
    hears(at, "one").await;
}

#[tokio::test]
async fn a_wildcard_replaces_its_own_address() {
    let (one, at) = (app("one").await, free());
    let mut proxy = Proxy::new(2);
    let narrow = snapshot(vec![listener("a", tcp(at))], &[("app", one)]);
    proxy.serve(narrow, hears(at, "one")).await;
    let wide = SocketAddr::from(([0, 0, 0, 0], at.port()));
    let wide = snapshot(vec![listener("a", tcp(wide))], &[("app", one)]);
    assert!(proxy.manager.apply(&wide).is_empty());
    hears(SocketAddr::from(([127, 0, 0, 2], at.port())), "one").await;
}

#[tokio::test]
async fn a_pipe_changes_its_mode_in_place_and_goes_with_the_manager() {
    use std::os::unix::fs::PermissionsExt;
    let one = app("one").await;
    let path = std::env::temp_dir().join(format!("attache-pipe-{}", std::process::id()));
    let pipe = |mode| Address::Pipe {
        path: path.clone(),
        mode: Some(mode),
    };
    let mut proxy = Proxy::new(2);
    for mode in [0o600, 0o660] {
        let snapshot = snapshot(vec![listener("a", pipe(mode))], &[("app", one)]);
        assert!(proxy.manager.apply(&snapshot).is_empty());
        let has = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(has, mode);
        let mut heard = [0; 3];
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.read_exact(&mut heard).await.unwrap();
    }
    drop(proxy);
    assert!(!path.exists());
}

#[tokio::test]
async fn stopped_listeners_stay_stopped() {
    let (one, public, local) = (app("one").await, free(), free());
    let mut proxy = Proxy::new(1);
    let both = || {
        let inbound = Listener {
            direction: Direction::Inbound,
            ..listener("public", tcp(public))
        };
        snapshot(vec![inbound, listener("upstream", tcp(local))], &[("app", one)])
    };
    proxy.serve(both(), hears(public, "one")).await;
    proxy.manager.control().stop(StopListeners::Inbound);
    proxy.serve(both(), refused(public)).await;
    hears(local, "one").await;
    proxy.manager.control().stop(StopListeners::All);
    proxy.serve(both(), refused(local)).await;
}

/// A storm of connects during a stop: each is served or refused, none is reset.
async fn stop_under_a_storm(workers: usize, exact_balance: bool) {
    let (one, at) = (app("one").await, free());
    let mut proxy = Proxy::new(workers);
    let storming = Listener {
        exact_balance,
        ..listener("a", tcp(at))
    };
    proxy
        .serve(snapshot(vec![storming], &[("app", one)]), hears(at, "one"))
        .await;
    let clients: Vec<_> = (0..16)
        .map(|_| {
            // Threads of their own, so that connects and the stop race.
            tokio::task::spawn_blocking(move || {
                use std::io::Read;
                let mut served = 0;
                loop {
                    match std::net::TcpStream::connect(at) {
                        Ok(mut stream) => {
                            let mut heard = [0; 3];
                            stream.read_exact(&mut heard).unwrap();
                            assert_eq!(&heard, b"one");
                            served += 1;
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                            return served;
                        }
                    }
                }
            })
        })
        .collect();
    for _ in 0..50 {
        hears(at, "one").await;
    }
    let drained = proxy.drain(Duration::from_secs(20)).await;
    assert_eq!(drained, vec![Drained { cut: 0 }; workers]);
    let mut served = 0;
    for client in clients {
        served += client.await.unwrap();
    }
    assert!(served > 0);
}

#[tokio::test]
async fn a_stop_resets_nobody() {
    stop_under_a_storm(1, false).await;
}

#[tokio::test]
async fn a_stop_of_two_workers_resets_nobody() {
    stop_under_a_storm(2, false).await;
}

#[tokio::test]
async fn a_stop_of_balanced_workers_resets_nobody() {
    stop_under_a_storm(3, true).await;
}

#[tokio::test]
async fn the_deadline_cuts_what_is_open_and_counts_it() {
    let (one, at) = (app("one").await, free());
    let mut proxy = Proxy::new(2);
    proxy
        .serve(
            snapshot(vec![listener("a", tcp(at))], &[("app", one)]),
            hears(at, "one"),
        )
        .await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.read_exact(&mut [0; 3]).await.unwrap();
        open.push(stream);
    }
    let cut: usize = proxy.drain(Duration::ZERO).await.iter().map(|d| d.cut).sum();
    // `hears` may not have ended its own yet.
    assert!((3..=4).contains(&cut), "{cut}");
    for mut stream in open {
        assert_eq!(
            stream.read(&mut [0]).await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
    }
}
