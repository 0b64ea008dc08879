//! `dfs fsck`: the whole file system checked while it is in use.

use std::io::IsTerminal;

use dfs_proto::wire::pb;
use serde_json::json;

use crate::admin::Admin;
use crate::exit::refused;
use crate::show;

/// Has the master check everything, prints what it finds as it is found, and at the end what was looked at.
///
/// # Errors
///
/// If anything was found: ends as failed (1) if all of it is mended now, as refused (4) if not. If the master cannot be
/// reached.
pub fn run(mut admin: Admin, request: pb::FsckRequest, as_json: bool) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    let mut summary = None;
    let shows_progress = !as_json && std::io::stderr().is_terminal();
    admin.fsck(request, |progress| {
        for finding in progress.findings {
            if !as_json {
                println!("{}", finding_text(&finding));
            }
            findings.push(finding);
        }
        if shows_progress && !progress.stage.is_empty() {
            eprint!("\r\x1b[K{}: {} of {}", progress.stage, progress.done, progress.total);
        }
        summary = summary.take().or(progress.summary);
    })?;
    if shows_progress {
        eprint!("\r\x1b[K");
    }
    let Some(summary) = summary else { anyhow::bail!("the check ended early: it says nothing of the rest") };
    if as_json {
        println!("{:#}", to_json(&findings, &summary));
    } else {
        println!("{}", summary_text(&summary, request.deep));
    }
    match (summary.findings, summary.repaired) {
        (0, _) => Ok(()),
        (all, repaired) if all == repaired => anyhow::bail!("{all} findings, all of them are mended"),
        (all, repaired) => Err(refused(format!("{} of {all} findings are not mended", all - repaired))),
    }
}

fn finding_text(finding: &pb::FsckFinding) -> String {
    format!("{} {}{}", finding.rule, finding.what, if finding.repaired { " (mended)" } else { "" })
}

fn summary_text(summary: &pb::FsckSummary, is_deep: bool) -> String {
    let rows = [
        ("inodes", summary.inodes),
        ("names", summary.dentries),
        ("chunks", summary.chunks),
        ("replicas", summary.replicas),
        ("findings", summary.findings),
        ("mended", summary.repaired),
    ];
    let mut text: Vec<String> = rows.iter().map(|(what, count)| format!("{count} {what}")).collect();
    if is_deep {
        let read = show::bytes(summary.checked_units.saturating_mul(u64::from(dfs_proto::limits::UNIT_SIZE)));
        text.push(format!("{read} read"));
    }
    text.join(", ")
}

fn to_json(findings: &[pb::FsckFinding], summary: &pb::FsckSummary) -> serde_json::Value {
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| json!({"rule": finding.rule, "what": finding.what, "repaired": finding.repaired}))
        .collect();
    json!({"findings": findings, "inodes": summary.inodes, "dentries": summary.dentries, "chunks": summary.chunks,
        "replicas": summary.replicas, "checked_units": summary.checked_units, "bad_units": summary.bad_units,
        "repaired_units": summary.repaired_units, "finding_count": summary.findings, "repaired": summary.repaired})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_its_rule_and_whether_it_is_mended() {
        let finding = |repaired| pb::FsckFinding { rule: "C5".into(), what: "inode 7 says …".into(), repaired };
        assert_eq!(finding_text(&finding(false)), "C5 inode 7 says …");
        assert_eq!(finding_text(&finding(true)), "C5 inode 7 says … (mended)");
        let summary = pb::FsckSummary { chunks: 3, checked_units: 512, findings: 1, ..Default::default() };
        let text = summary_text(&summary, true);
        assert!(text.contains("3 chunks") && text.contains("1 findings") && text.contains("2.0 MiB read"), "{text}");
        assert_eq!(to_json(&[finding(true)], &summary)["findings"][0]["repaired"], true);
    }
}
