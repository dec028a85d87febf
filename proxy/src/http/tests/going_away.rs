//! An HTTP/2 upstream that ends its connections in order.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use hyper::http::Response;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::rig::{Rig, manager, route, run, to};
use crate::model::route::PathMatch;

/// The connection that each request came on, by its path.
type Seen = Rc<RefCell<Vec<(usize, String)>>>;

/// Answers at once but for `/slow`, which is answered once `finish` was told. It says GOAWAY on a connection as
/// soon as that has a slow request.
async fn upstream(seen: Seen, finish: Rc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        for number in 1.. {
            let (socket, _) = listener.accept().await.unwrap();
            let (seen, finish) = (Rc::clone(&seen), Rc::clone(&finish));
            spawn_local(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut answer))) = connection.accept().await {
                    let path = request.uri().path().to_owned();
                    let slow = path == "/slow";
                    seen.borrow_mut().push((number, path));
                    if slow {
                        connection.graceful_shutdown();
                    }
                    let finish = Rc::clone(&finish);
                    spawn_local(async move {
                        if slow {
                            finish.notified().await;
                        }
                        let mut body = answer.send_response(Response::new(()), false).unwrap();
                        body.send_data(Bytes::from_static(b"done"), true).unwrap();
                    });
                }
            });
        }
    });
    address
}

#[test]
fn an_http2_connection_that_goes_away_gets_no_further_request() {
    run(async {
        let (seen, finish) = (Seen::default(), Rc::new(Notify::new()));
        let address = upstream(Rc::clone(&seen), Rc::clone(&finish)).await;
        let routes = manager(vec![route(PathMatch::Prefix("/".into()), to("http2", None))]);
        let rig = Rig::start_before(routes, address).await;
        let (mut slow, mut client) = (rig.client().await, rig.client().await);
        assert_eq!(client.get("/first").await.text(), "done");
        slow.send("GET /slow HTTP/1.1\r\nhost: h\r\n\r\n").await;
        while seen.borrow().len() < 2 {
            tokio::task::yield_now().await;
        }
        // The one under way keeps its connection open meanwhile.
        while seen.borrow().iter().all(|(at, _)| *at == 1) {
            let answer = client.get("/a").await;
            assert_eq!((answer.status, answer.text()), (200, "done"));
        }
        finish.notify_one();
        assert_eq!(slow.answer("GET").await.text(), "done");
    });
}
