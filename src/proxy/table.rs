//! The status as people read it. PURE.
//!
//! Purpose: one aligned table for `curl -H 'Accept: text/plain'`. Owner: `respond`. Invariant: what is unknown is `?`, what
//! does not apply is `-`; neither is ever shown as 0.

use std::fmt::Write as _;

use crate::types::{Bytes, ExternalStatus, GpuStatus, Known, ModelStatus, Status};

/// Writes the table.
pub(super) fn table(status: &Status, externals: &[ExternalStatus]) -> String {
    let mut out = String::new();
    if status.shutting_down {
        out.push_str("hostler is shutting down\n\n");
    }
    let mut rows =
        vec![row(["MODEL", "PHASE", "PLANNED", "OBSERVED", "REQUESTS", "QUEUE", "DEVICES"])];
    rows.extend(status.models.iter().map(model));
    align(&mut out, &rows);
    out.push('\n');
    let mut rows = vec![row(["DEVICE", "NAME", "TOTAL", "USED", "FREE"])];
    rows.extend(status.gpus.iter().map(gpu));
    align(&mut out, &rows);
    if !externals.is_empty() {
        out.push('\n');
        let mut rows = vec![row(["ELSEWHERE", "HEALTH", "URL"])];
        rows.extend(externals.iter().map(|e| row([e.name.as_str(), e.health.as_str(), &e.url])));
        align(&mut out, &rows);
    }
    notes(&mut out, status, externals);
    out
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn model(model: &ModelStatus) -> Vec<String> {
    let devices: Vec<&str> = model.gpus.iter().map(|g| g.as_str()).collect();
    let planned = match &model.planned {
        // The promise is per device, the observation is of all of them: show the same kind of sum.
        Some(need) => {
            let devices = u32::try_from(model.gpus.len().max(1)).unwrap_or(u32::MAX);
            need.bytes.scale(devices, 1).to_string()
        }
        None => "-".into(),
    };
    let observed = match (model.observed, &model.instance) {
        (Known::Known(bytes), _) => bytes.to_string(),
        (Known::Unknown, Some(_)) => "?".into(),
        (Known::Unknown, None) => "-".into(),
    };
    vec![
        model.name.to_string(),
        if model.pinned { format!("{} (pinned)", model.phase) } else { model.phase.to_string() },
        planned,
        observed,
        model.in_flight.to_string(),
        model.queued.to_string(),
        if devices.is_empty() { "-".into() } else { devices.join(",") },
    ]
}

fn gpu(gpu: &GpuStatus) -> Vec<String> {
    let known = |k: Known<Bytes>| k.get().map_or_else(|| "?".to_owned(), |b| b.to_string());
    let ours = gpu.reserved + gpu.confirmed + gpu.releasing + gpu.quarantined;
    let used = match gpu.foreign {
        Known::Known(foreign) => (ours + foreign).to_string(),
        Known::Unknown => "?".into(),
    };
    vec![gpu.id.to_string(), gpu.name.clone(), known(gpu.total), used, known(gpu.free)]
}

fn notes(out: &mut String, status: &Status, externals: &[ExternalStatus]) {
    let mut lines = Vec::new();
    for model in &status.models {
        if let Some(why) = &model.waiting_for {
            lines.push(format!("{} waits: {why}", model.name));
        }
        if let Some(fault) = &model.error {
            lines.push(format!("{}: {} ({})", model.name, fault.message, fault.code));
        }
    }
    for ExternalStatus { name, why, .. } in externals {
        lines.extend(why.as_ref().map(|why| format!("{name}: {why}")));
    }
    for problem in &status.problems {
        lines.push(format!("problem {}: {}", problem.code, problem.message));
    }
    if !lines.is_empty() {
        let _ = write!(out, "\n{}\n", lines.join("\n"));
    }
}

/// Left-aligned columns, two spaces apart, without trailing blanks.
fn align(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| {
        rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        ExternalHealth, Fault, FaultCode, Generation, GpuId, InstanceId, Moment, Need, NeedSource,
        Phase, Problem, test_status as model,
    };

    #[test]
    fn the_whole_table() {
        let mut ready = model("qwen3");
        ready.phase = Phase::Ready;
        ready.pinned = true;
        ready.instance = Some(InstanceId::new(ready.name.clone(), Generation(1), 1));
        ready.gpus = vec![GpuId::new("GPU-a"), GpuId::new("GPU-b")];
        ready.planned = Some(Need { bytes: Bytes::gib(2), source: NeedSource::Declared });
        ready.in_flight = 3;
        let mut failed = model("b/long-name");
        failed.phase = Phase::Failed;
        failed.error = Some(Fault::new(FaultCode::EngineExited, "exited with 1"));
        let gpu = GpuStatus {
            id: GpuId::new("GPU-a"),
            name: "H200".into(),
            total: Known::Known(Bytes::gib(9)),
            headroom: Bytes::ZERO,
            reserved: Bytes::gib(1),
            confirmed: Bytes::gib(2),
            releasing: Bytes::ZERO,
            quarantined: Bytes::gib(1),
            foreign: Known::Known(Bytes::gib(1)),
            free: Known::Known(Bytes::gib(4)),
            processes: vec![],
        };
        let lost = GpuStatus {
            id: GpuId::new("GPU-b"),
            total: Known::Unknown,
            foreign: Known::Unknown,
            free: Known::Unknown,
            ..gpu.clone()
        };
        let status = Status {
            models: vec![ready, failed],
            gpus: vec![gpu, lost],
            problems: vec![Problem {
                code: "gpu_lost",
                message: "GPU-b is lost".into(),
                since: Moment::START,
            }],
            shutting_down: false,
        };
        let want = "\
MODEL        PHASE           PLANNED  OBSERVED  REQUESTS  QUEUE  DEVICES
qwen3        ready (pinned)  4.0 GiB  ?         3         0      GPU-a,GPU-b
b/long-name  failed          -        -         0         0      -

DEVICE  NAME  TOTAL    USED     FREE
GPU-a   H200  9.0 GiB  5.0 GiB  4.0 GiB
GPU-b   H200  ?        ?        ?

b/long-name: exited with 1 (engine_exited)
problem gpu_lost: GPU-b is lost
";
        assert_eq!(table(&status, &[]), want);
    }

    #[test]
    fn models_that_run_elsewhere_have_a_table_of_their_own() {
        let external = ExternalStatus {
            name: "org/far".parse().unwrap(),
            aliases: vec![],
            url: "http://far:8711".into(),
            health: ExternalHealth::Unwell,
            why: Some("dead".into()),
            since: None,
        };
        let text = table(&Status::default(), &[external]);
        let want =
            "\nELSEWHERE  HEALTH  URL\norg/far    unwell  http://far:8711\n\norg/far: dead\n";
        assert!(text.ends_with(want), "{text}");
    }
}
