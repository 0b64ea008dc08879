//! Monitoring as a user sets it up: Prometheus with the project's own configuration finds every process of a cluster,
//! and each panel of the dashboard has something to show.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns processes and files")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfs_tests::cluster::{Cluster, Server, with_cluster};
use dfs_tests::workload::pattern;
use dfs_tests::{binary, http, program, wait};

/// Ends Prometheus whatever happens.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts Prometheus with the project's files, in which only the master's address is another one.
fn start_prometheus(cluster: &Cluster, port: u16) -> Result<Prometheus> {
    program::need("prometheus")?;
    let directory = cluster.root().join("prometheus");
    let source = binary::project().join("monitoring/prometheus");
    program::ok(
        Path::new("/"),
        "cp",
        ["-r".as_ref(), source.as_os_str(), directory.as_os_str()],
        Duration::from_secs(10),
    )?;
    let config = std::fs::read_to_string(directory.join("prometheus.yml"))?;
    let ours = format!("127.0.0.1:{}", cluster.http_port(Server::Master));
    ensure!(
        config.matches("127.0.0.1:7002").count() == 3,
        "the address of the master is expected thrice in prometheus.yml"
    );
    let config =
        config.replace("127.0.0.1:7002", &ours).replace(" 5s", " 1s").replace(" 4s", " 1s").replace(" 10s", " 1s");
    std::fs::write(directory.join("prometheus.yml"), config)?;
    let log = std::fs::File::create(directory.join("log"))?;
    let child = Command::new("prometheus")
        .arg("--config.file=prometheus.yml")
        .arg("--storage.tsdb.path=data")
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .current_dir(&directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(Prometheus(child))
}

/// Returns the targets that Prometheus scrapes with success, as `JOB INSTANCE`.
fn targets_up(port: u16) -> Result<Vec<String>> {
    let (status, body) = http::get(port, "/api/v1/query?query=up%3D%3D1")?;
    ensure!(status == 200, "Prometheus says {status}: {body}");
    let body: serde_json::Value = serde_json::from_str(&body)?;
    let series = body["data"]["result"].as_array().context("no result")?;
    let name = |series: &serde_json::Value, label: &str| series["metric"][label].as_str().unwrap_or("?").to_owned();
    Ok(series.iter().map(|series| format!("{} {}", name(series, "job"), name(series, "instance"))).collect())
}

/// A bit of everything: names, inline and large files, syncs, cold reads, errors.
fn load(writer: &Path, reader: &Path, round: u64) -> Result<()> {
    let name = format!("round{round}");
    std::fs::create_dir(writer.join(&name))?;
    for index in 0..20 {
        std::fs::write(writer.join(&name).join(index.to_string()), pattern(index, 4_000))?;
    }
    let large = std::fs::File::create(writer.join(&name).join("large"))?;
    std::os::unix::fs::FileExt::write_all_at(&large, &pattern(round, 6 << 20), 0)?;
    large.sync_all()?;
    let _ = std::fs::metadata(writer.join("not-there"));
    if round > 0 {
        let before = reader.join(format!("round{}", round - 1));
        for entry in std::fs::read_dir(before)? {
            std::fs::read(entry?.path())?;
        }
    }
    Ok(())
}

#[test]
fn prometheus_finds_every_process_and_no_panel_of_the_dashboard_is_empty() {
    with_cluster(|cluster| {
        let (first, second) = (cluster.mount()?, cluster.mount()?);
        let port = cluster.spare_port(0);
        let prometheus = start_prometheus(cluster, port)?;
        let outcome = check(cluster, &cluster.dir(first), &cluster.dir(second), port);
        if outcome.is_err() {
            eprintln!("{}", std::fs::read_to_string(cluster.root().join("prometheus/log")).unwrap_or_default());
        }
        drop(prometheus);
        outcome
    });
}

fn check(cluster: &Cluster, writer: &Path, reader: &Path, port: u16) -> Result<()> {
    wait::until("all targets are up", Duration::from_secs(40), || {
        let mut jobs: Vec<_> =
            targets_up(port)?.iter().map(|target| target.split(' ').next().unwrap_or("").to_owned()).collect();
        jobs.sort();
        let expected = ["dfs-chunkd", "dfs-chunkd", "dfs-chunkd", "dfs-master", "dfs-mount", "dfs-mount"];
        ensure!(
            jobs == expected,
            "up are {:?}; /sd says {:?}",
            targets_up(port)?,
            http::get(cluster.http_port(Server::Master), "/sd")
        );
        Ok(())
    })?;
    let dashboard = binary::project().join("monitoring/grafana/dashboards/overview.json");
    let script = binary::project().join("scripts/monitoring-check.sh");
    let mut round = 0;
    // Rates need two scrapes with traffic between them, so there is traffic until the panels are full.
    wait::until("no panel is empty", Duration::from_secs(60), || {
        load(writer, reader, round)?;
        round += 1;
        let mut command = Command::new(&script);
        command.arg(&dashboard).arg(format!("http://127.0.0.1:{port}"));
        program::command_ok(&mut command, Duration::from_secs(30)).map(|_| ())
    })?;
    let (_, alerts) = http::get(port, "/api/v1/alerts")?;
    ensure!(!alerts.contains("\"firing\""), "an alert fires on a healthy cluster: {alerts}");
    Ok(())
}
