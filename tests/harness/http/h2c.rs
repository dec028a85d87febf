//! HTTP/2 without TLS: the downstream of a case, and the upstream's half.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::case::Ask;
use super::outcome::Got;
use super::seen::{Book, Entry, Seen};
use super::upstream::{Cut, WISHES, Wish};
use super::wire::{Headers, SILENCE};

/// The largest list of headers that either half takes; above what any case sends.
const HEADERS: u32 = 1 << 20;

/// A connection to a proxy.
#[derive(Debug)]
pub struct Connection {
    requests: SendRequest<Bytes>,
    task: JoinHandle<Result<(), h2::Error>>,
    /// The port of this side.
    pub port: u16,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects; `None` if the proxy speaks no HTTP/2.
    pub async fn open(to: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(to).await.unwrap();
        let _ = stream.set_nodelay(true);
        let port = stream.local_addr().unwrap().port();
        let mut builder = h2::client::Builder::new();
        builder.max_header_list_size(HEADERS).initial_window_size(1 << 24);
        let (requests, connection) = builder.handshake(stream).await.ok()?;
        let task = tokio::spawn(connection);
        Some(Self { requests, task, port })
    }

    /// Sends a request and reads the answer.
    pub async fn ask(&self, ask: &Ask) -> Got {
        exchanged(self.requests.clone(), ask).await
    }

    /// Sends the same request so often at once.
    pub async fn ask_at_once(&self, ask: &Ask, times: usize) -> Vec<Got> {
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..times {
            let (requests, ask) = (self.requests.clone(), ask.clone());
            waiting.spawn(async move { exchanged(requests, &ask).await });
        }
        waiting.join_all().await
    }

    /// How the connection goes on after the last answer; `probe` is asked of it.
    pub async fn afterwards(&self, probe: &Ask) -> String {
        let got = self.ask(probe).await;
        match got.stop {
            None => "connection kept".to_owned(),
            Some(stop) if got.first.is_empty() => format!("connection ended: {stop}"),
            Some(_) => "connection kept".to_owned(),
        }
    }
}

async fn exchanged(requests: SendRequest<Bytes>, ask: &Ask) -> Got {
    let mut got = Got::default();
    match timeout(SILENCE, try_exchange(requests, ask, &mut got)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => got.stop = Some(told(&error)),
        Err(_) => got.stop = Some("silent".to_owned()),
    }
    got
}

async fn try_exchange(mut requests: SendRequest<Bytes>, ask: &Ask, got: &mut Got) -> Result<(), h2::Error> {
    poll_fn(|cx| requests.poll_ready(cx)).await?;
    if ask.upgrade.is_some() && !requests.is_extended_connect_protocol_enabled() {
        got.stop = Some("extended CONNECT is not offered".to_owned());
        return Ok(());
    }
    let streams = ask.body.is_some() || !ask.trailers.is_empty() || ask.upgrade.is_some();
    let (mut answer, mut sender) = requests.send_request(request(ask), !streams)?;
    if ask.expects
        && let Some(early) = first_answer(&mut answer, got).await?
    {
        return read(early, got).await;
    }
    if ask.upgrade.is_some() {
        return upgraded(answer, sender, ask, got).await;
    }
    if streams {
        send(&mut sender, ask);
    }
    let answered = loop {
        match first_answer(&mut answer, got).await? {
            Some(answered) => break answered,
            None => continue,
        }
    };
    read(answered, got).await
}

/// An interim answer is noted and gives `None`.
async fn first_answer(
    answer: &mut ResponseFuture,
    got: &mut Got,
) -> Result<Option<Response<RecvStream>>, h2::Error> {
    enum One {
        Interim(Response<()>),
        Final(Box<Response<RecvStream>>),
    }
    let one = poll_fn(|cx| {
        use std::future::Future;
        use std::task::Poll;
        if let Poll::Ready(Some(interim)) = answer.poll_informational(cx) {
            return Poll::Ready(interim.map(One::Interim));
        }
        std::pin::Pin::new(&mut *answer)
            .poll(cx)
            .map_ok(|response| One::Final(Box::new(response)))
    });
    match one.await? {
        One::Interim(interim) => {
            let first = format!("HTTP/2 {}", interim.status().as_u16());
            got.interim.push((first, pairs(interim.headers())));
            Ok(None)
        }
        One::Final(response) => Ok(Some(*response)),
    }
}

async fn read(answer: Response<RecvStream>, got: &mut Got) -> Result<(), h2::Error> {
    head(&answer, got);
    let mut body = answer.into_body();
    while let Some(part) = body.data().await {
        let part = part?;
        got.body.extend_from_slice(&part);
        let _ = body.flow_control().release_capacity(part.len());
    }
    if let Some(trailers) = body.trailers().await? {
        got.trailers = pairs(&trailers);
    }
    Ok(())
}

async fn upgraded(
    mut answer: ResponseFuture,
    mut sender: SendStream<Bytes>,
    ask: &Ask,
    got: &mut Got,
) -> Result<(), h2::Error> {
    let answered = loop {
        match first_answer(&mut answer, got).await? {
            Some(answered) => break answered,
            None => continue,
        }
    };
    let payload = ask.body.clone().unwrap_or_default();
    if !answered.status().is_success() {
        return read(answered, got).await;
    }
    let length = payload.len();
    sender.send_data(payload.into(), false)?;
    head(&answered, got);
    let mut body = answered.into_body();
    while got.body.len() < length
        && let Some(part) = body.data().await
    {
        got.body.extend_from_slice(&part?);
    }
    // An end of one side is not passed on by all; a reset is.
    sender.send_reset(Reason::CANCEL);
    got.stop = Some("upgraded, given up by the downstream".to_owned());
    Ok(())
}

fn head(answer: &Response<RecvStream>, got: &mut Got) {
    got.first = format!("HTTP/2 {}", answer.status().as_u16());
    got.headers = pairs(answer.headers());
}

fn send(sender: &mut SendStream<Bytes>, ask: &Ask) {
    let body = ask.body.clone().unwrap_or_default();
    let trailers = map(&ask.trailers);
    // An answer may end the stream first; then there is nothing to send to.
    let _ = sender.send_data(body.into(), trailers.is_empty());
    if !trailers.is_empty() {
        let _ = sender.send_trailers(trailers);
    }
}

fn request(ask: &Ask) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = match &ask.upgrade {
        Some(_) => Method::CONNECT,
        None => Method::from_bytes(ask.method.as_bytes()).unwrap(),
    };
    *request.uri_mut() = Uri::builder()
        .scheme(ask.scheme.as_str())
        .authority(ask.host.as_str())
        .path_and_query(ask.path.as_str())
        .build()
        .unwrap();
    *request.headers_mut() = map(&ask.headers);
    if let Some(body) = &ask.body
        && !ask.chunked
        && ask.trailers.is_empty()
        && ask.upgrade.is_none()
    {
        request.headers_mut().insert("content-length", body.len().into());
    }
    if let Some(protocol) = &ask.upgrade {
        request.extensions_mut().insert(Protocol::from(protocol.as_str()));
    }
    request
}

fn map(headers: &Headers) -> HeaderMap {
    let pair = |(name, value): &(String, String)| {
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).unwrap();
        (name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter().map(pair) {
        map.append(name, value);
    }
    map
}

fn pairs(map: &HeaderMap) -> Headers {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    map.iter()
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect()
}

/// How a stream or its connection ended.
fn told(error: &h2::Error) -> String {
    let reason = error
        .reason()
        .map_or("none".to_owned(), |reason| format!("{reason:?}"));
    if error.is_go_away() {
        format!("GOAWAY {reason}")
    } else if error.is_reset() {
        format!("RST_STREAM {reason}")
    } else {
        "the connection broke".to_owned()
    }
}

/// Serves one connection of an upstream.
pub async fn serve(stream: TcpStream, name: Arc<str>, book: Book) {
    let mut builder = h2::server::Builder::new();
    builder
        .enable_connect_protocol()
        .max_header_list_size(HEADERS)
        .initial_window_size(1 << 24)
        .initial_connection_window_size(1 << 24);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
        return;
    };
    let (done, mut ends) = tokio::sync::mpsc::unbounded_channel();
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let (name, book, done) = (Arc::clone(&name), book.clone(), done.clone());
                    tokio::spawn(async move {
                        if exchange(request, respond, name, &book).await {
                            let _ = done.send(());
                        }
                    });
                }
                _ => return,
            },
            Some(()) = ends.recv() => connection.graceful_shutdown(),
        }
    }
}

/// One request and its answer; whether the connection is to end.
async fn exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: Arc<str>,
    book: &Book,
) -> bool {
    let headers = fields(&request);
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let entry = book.begin(Seen {
        upstream: Arc::clone(&name),
        first: format!("{} {path} HTTP/2", request.method()),
        headers: headers.iter().filter(|(n, _)| n != WISHES).cloned().collect(),
        ..Seen::default()
    });
    let wish = Wish::read(&headers, &name, entry.number);
    let method = request.method().to_string();
    let expects = headers
        .iter()
        .any(|(name, value)| name == "expect" && value == "100-continue");
    let mut body = request.into_body();
    if expects && !wish.early {
        let _ = respond.send_informational(Response::builder().status(100).body(()).unwrap());
    }
    if !wish.early && !wish.upgrade && !read_body(&mut body, &entry).await {
        entry.end("the request was cut");
        return false;
    }
    let how = answer(&mut respond, body, &wish, &method, &entry).await;
    entry.end(how.unwrap_or("given up by the proxy"));
    wish.close
}

/// The headers with those that begin with a colon.
fn fields(request: &Request<RecvStream>) -> Headers {
    let mut headers = Headers::new();
    if let Some(scheme) = request.uri().scheme_str() {
        headers.push((":scheme".to_owned(), scheme.to_owned()));
    }
    if let Some(authority) = request.uri().authority() {
        headers.push((":authority".to_owned(), authority.to_string()));
    }
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        headers.push((":protocol".to_owned(), protocol.as_str().to_owned()));
    }
    headers.extend(pairs(request.headers()));
    headers
}

async fn read_body(body: &mut RecvStream, entry: &Entry) -> bool {
    while let Some(part) = body.data().await {
        let Ok(part) = part else {
            return false;
        };
        let _ = body.flow_control().release_capacity(part.len());
        entry.with(|seen| seen.body.extend_from_slice(&part));
    }
    match body.trailers().await {
        Ok(trailers) => {
            let trailers = trailers.map(|trailers| pairs(&trailers)).unwrap_or_default();
            entry.with(|seen| seen.trailers = trailers);
            true
        }
        Err(_) => false,
    }
}

/// Answers as wished; the error is that the proxy gave up.
async fn answer(
    respond: &mut SendResponse<Bytes>,
    mut body: RecvStream,
    wish: &Wish,
    method: &str,
    entry: &Entry,
) -> Result<&'static str, h2::Error> {
    let given_up = async |respond: &mut SendResponse<Bytes>| poll_fn(|cx| respond.poll_reset(cx)).await;
    if wish.cut == Some(Cut::Never) {
        let _ = given_up(respond).await;
        return Ok("given up by the proxy");
    }
    if !wish.delay.is_zero() && timeout(wish.delay, given_up(respond)).await.is_ok() {
        return Ok("given up by the proxy");
    }
    match wish.cut {
        Some(Cut::Before) => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok("cut by the upstream");
        }
        Some(Cut::Refuse) => {
            respond.send_reset(Reason::REFUSED_STREAM);
            return Ok("refused by the upstream");
        }
        _ => {}
    }
    if let Some(status) = wish.hint {
        let hint = Response::builder().status(status).header("x-hint", "yes");
        respond.send_informational(hint.body(()).unwrap())?;
    }
    let mut response = Response::builder().status(wish.status).body(()).unwrap();
    *response.headers_mut() = map(&wish.headers);
    if wish.upgrade {
        let mut sender = respond.send_response(response, false)?;
        return echo(&mut body, &mut sender, entry).await;
    }
    let has_body = wish.has_body(method);
    if has_body && wish.framing.is_none() && wish.trailers.is_empty() {
        response
            .headers_mut()
            .insert("content-length", wish.body.len().into());
    }
    let ends = !has_body && wish.trailers.is_empty() && wish.cut != Some(Cut::AfterHeaders);
    let mut sender = respond.send_response(response, ends)?;
    if ends {
        return Ok("answered");
    }
    send_body(&mut sender, wish, has_body).await
}

async fn send_body(
    sender: &mut SendStream<Bytes>,
    wish: &Wish,
    has_body: bool,
) -> Result<&'static str, h2::Error> {
    if wish.cut == Some(Cut::AfterHeaders) {
        // The reset would overtake headers that are not written yet.
        tokio::task::yield_now().await;
        sender.send_reset(Reason::INTERNAL_ERROR);
        return Ok("cut by the upstream");
    }
    if has_body {
        let bytes = Bytes::from(wish.body.clone());
        let half = bytes.len() / 2;
        // Proxies take empty frames for a flood.
        if half > 0 {
            sender.send_data(bytes.slice(..half), false)?;
        }
        if wish.cut == Some(Cut::InBody) {
            tokio::task::yield_now().await;
            sender.send_reset(Reason::INTERNAL_ERROR);
            return Ok("cut by the upstream");
        }
        if let Some(pause) = wish.pause
            && timeout(pause, poll_fn(|cx| sender.poll_reset(cx))).await.is_ok()
        {
            return Ok("given up by the proxy");
        }
        sender.send_data(bytes.slice(half..), wish.trailers.is_empty())?;
    }
    if !wish.trailers.is_empty() {
        sender.send_trailers(map(&wish.trailers))?;
    }
    Ok("answered")
}

/// Sends back what comes until the other side ends.
async fn echo(
    body: &mut RecvStream,
    sender: &mut SendStream<Bytes>,
    entry: &Entry,
) -> Result<&'static str, h2::Error> {
    while let Some(part) = body.data().await {
        let part = part?;
        let _ = body.flow_control().release_capacity(part.len());
        entry.with(|seen| seen.body.extend_from_slice(&part));
        sender.send_data(part, false)?;
    }
    sender.send_data(Bytes::new(), true)?;
    Ok("upgraded, ended")
}
