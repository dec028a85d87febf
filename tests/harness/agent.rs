//! Real Consul agents, where `consul` is on PATH: started on free loopback ports, ended with their
//! handle, together with the folder that they write to.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::once::once;
use crate::process::Process;
use crate::tools::on_path;
use crate::{Folder, free_port, within};

/// An agent elects itself, and makes its authority, within a few seconds; on a busy machine in more.
const START: Duration = Duration::from_secs(40);

/// A running agent, server and client in one.
#[derive(Debug)]
pub struct Agent {
    /// Its HTTP API.
    pub http: SocketAddr,
    /// Sent with every request of the test itself.
    pub token: Option<String>,
    /// What it writes to.
    pub folder: Folder,
    program: String,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Agent {
    /// Starts `consul agent -dev` with these settings on top of free ports. `None`, and a line that
    /// says so, where there is no Consul.
    pub async fn dev(settings: Value) -> Option<Self> {
        Self::start(&["-dev"], settings, None).await
    }

    /// A server that keeps its data, so that it can be killed and started again.
    pub async fn lasting(settings: Value) -> Option<Self> {
        let arguments = ["-server", "-bootstrap-expect=1", "-data-dir=data"];
        Self::start(&arguments, settings, None).await
    }

    /// As [`Self::dev`], with a token for the test's own requests and files beside the settings.
    pub async fn start(arguments: &[&str], settings: Value, token: Option<String>) -> Option<Self> {
        let program = on_path("consul")?.to_str()?.to_owned();
        let folder = Folder::new();
        Some(Self::start_in(folder, program, arguments, settings, token).await)
    }

    /// As [`Self::start`], in a folder that exists, with a program that is there.
    pub async fn start_in(
        folder: Folder,
        program: String,
        arguments: &[&str],
        mut settings: Value,
        token: Option<String>,
    ) -> Self {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let defaults = json!({
            "http": http.port(),
            "grpc": -1,
            "grpc_tls": -1,
            "dns": -1,
            "serf_lan": free_port(),
            "serf_wan": free_port(),
            "server": free_port(),
        });
        let mut ports = defaults.as_object().cloned().unwrap();
        if let Some(given) = settings["ports"].as_object() {
            ports.extend(given.clone());
        }
        settings["ports"] = ports.into();
        settings["bind_addr"] = "127.0.0.1".into();
        settings["client_addr"] = "127.0.0.1".into();
        settings["connect"] = json!({ "enabled": true });
        let settings = folder.write("agent.json", &settings.to_string());
        let data = format!("-data-dir={}", folder.file("data"));
        let mut all: Vec<String> = ["agent", "-log-level=warn", "-config-file", &settings]
            .map(str::to_owned)
            .to_vec();
        all.extend(arguments.iter().map(|&argument| match argument {
            "-data-dir=data" => data.clone(),
            other => other.to_owned(),
        }));
        let mut agent = Self {
            http,
            token,
            folder,
            program,
            arguments: all,
            process: None,
        };
        agent.run().await;
        agent
    }

    /// Starts the process (again) and waits until it serves the mesh.
    pub async fn run(&mut self) {
        self.process = Some(Process::start("consul", &self.program, &self.arguments, &[]));
        let agent = &*self;
        within(START, "Consul has a leader and an authority", || async {
            let roots = agent.ask("GET", "/v1/agent/connect/ca/roots", None).await?;
            (roots.0 == 200 && !roots.1["Roots"].as_array()?.is_empty()).then_some(())
        })
        .await;
    }

    /// Kills it; no goodbye.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("KILL").await;
            process.ended().await;
        }
    }

    /// What it has written.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// One request that must be answered with 200; the answer as JSON.
    pub async fn api(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self
            .ask(method, path, body)
            .await
            .unwrap_or_else(|| panic!("{method} {path}: Consul does not answer: {}", self.log()));
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer
    }

    /// Replaces a destination's intentions by `(source, action)`.
    pub async fn intentions(&self, destination: &str, sources: &[(&str, &str)]) {
        let sources = sources.iter();
        let sources: Vec<Value> = sources
            .map(|(name, action)| json!({ "Name": name, "Action": action }))
            .collect();
        let entry = json!({ "Kind": "service-intentions", "Name": destination, "Sources": sources });
        self.api("PUT", "/v1/config", Some(entry)).await;
    }

    /// Removes a destination's intentions.
    pub async fn no_intentions(&self, destination: &str) {
        let path = format!("/v1/config/service-intentions/{destination}");
        self.api("DELETE", &path, None).await;
    }

    /// Has Consul make another root; gives the new one's ID.
    pub async fn rotate_root(&self, bits: u32) -> String {
        let config = json!({
            "LeafCertTTL": "72h",
            "IntermediateCertTTL": "8760h",
            "PrivateKeyType": "ec",
            "PrivateKeyBits": bits,
        });
        let before = self.active_root().await;
        let body = json!({ "Provider": "consul", "Config": config });
        self.api("PUT", "/v1/connect/ca/configuration", Some(body)).await;
        crate::eventually("Consul has another active root", || async {
            let now = self.active_root().await;
            (now != before).then_some(now)
        })
        .await
    }

    /// The ID of the root that signs.
    pub async fn active_root(&self) -> String {
        let roots = self.api("GET", "/v1/agent/connect/ca/roots", None).await;
        roots["ActiveRootID"].as_str().unwrap_or_default().to_owned()
    }

    /// One request over a connection of its own. `None` where nobody answers.
    pub async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Option<(u16, Value)> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let token = self.token.as_ref();
        let token = token.map(|token| format!("X-Consul-Token: {token}\r\n"));
        // HTTP/1.0: the answer ends with the connection and is never chunked.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: consul\r\n{}Content-Length: {}\r\n\r\n{body}",
            token.unwrap_or_default(),
            body.len(),
        );
        let mut stream = TcpStream::connect(self.http).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((
            status,
            serde_json::from_str(body).unwrap_or_else(|_| body.trim().into()),
        ))
    }
}

/// Has Consul itself make an authority and a server's certificate for loopback in a folder. Gives the
/// settings by which an agent serves HTTPS with them, on a free port, and that port.
pub async fn https(program: &str, folder: &Folder) -> (Value, u16) {
    let shell = |command: &str| format!("cd {} && {program} tls {command}", folder.path("").display());
    for command in ["ca create", "cert create -server -dc dc1"] {
        let made = once("/bin/sh", &["-c", &shell(command)], &[]).await;
        assert_eq!(made.code, Some(0), "{made:?}");
    }
    let port = free_port();
    let tls = json!({
        "ca_file": folder.file("consul-agent-ca.pem"),
        "cert_file": folder.file("dc1-server-consul-0.pem"),
        "key_file": folder.file("dc1-server-consul-0-key.pem"),
    });
    (
        json!({ "ports": { "https": port }, "tls": { "https": tls } }),
        port,
    )
}
