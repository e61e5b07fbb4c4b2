//! Answers of the placement driver as text for administrators. Pure.

use crate::display::{bytes, table};
use evenkeel_local_cluster::operator_text::describe;
use evenkeel_protocol::api::{
    DecisionsBody, OperatorBody, RangeBody, RouteBody, RouteLookupBody, RoutesBody, ShardBody,
};

/// `GET /v1/routes`.
pub fn routes(body: &RoutesBody) -> String {
    let mut sorted: Vec<&RouteBody> = body.routes.iter().collect();
    sorted.sort_by(|a, b| (&a.table_name, &a.start_hex).cmp(&(&b.table_name, &b.start_hex)));
    let rows: Vec<_> = sorted.into_iter().map(route_row).collect();
    format!("{}\nversion {}", table(&["table", "from", "to", ">range", ">epoch", ">shard"], &rows), body.version)
}

fn route_row(route: &RouteBody) -> Vec<String> {
    vec![
        route.table_name.clone(),
        bound(route.start.as_deref()),
        bound(route.end.as_deref()),
        route.range.to_string(),
        route.epoch.to_string(),
        route.shard.to_string(),
    ]
}

/// `GET /v1/routes/{table}?key=`.
pub fn route(body: &RouteLookupBody) -> String {
    let replicas = body.shard.replicas.iter().map(|(number, address)| {
        let leads = if body.leader == Some(*number) { " (leads)" } else { "" };
        format!("replica {number}: {address}{leads}")
    });
    let heading = ["table", "from", "to", ">range", ">epoch", ">shard"];
    format!("{}\n{}", table(&heading, &[route_row(&body.route)]), replicas.collect::<Vec<_>>().join("\n"))
}

/// `GET /v1/ranges`.
pub fn ranges(ranges: &[RangeBody]) -> String {
    let mut sorted: Vec<&RangeBody> = ranges.iter().collect();
    sorted.sort_by(|a, b| (&a.route.table_name, &a.route.start_hex).cmp(&(&b.route.table_name, &b.route.start_hex)));
    let rows: Vec<Vec<String>> = sorted
        .into_iter()
        .map(|range| {
            let mut row = route_row(&range.route);
            let load = |f: &dyn Fn(&evenkeel_protocol::api::LoadBody) -> String| {
                range.load.as_ref().map_or_else(|| "-".to_string(), f)
            };
            row.push(load(&|l| format!("{:.0}", l.reads_per_s)));
            row.push(load(&|l| format!("{:.0}", l.writes_per_s)));
            row.push(load(&|l| l.rows.to_string()));
            row.push(load(&|l| bytes(l.bytes)));
            row.push(load(&|l| format!("{:.1} %", l.hottest_share * 100.0)));
            row.push(range.operator.map_or_else(String::new, |o| o.to_string()));
            row
        })
        .collect();
    let heading = [
        "table",
        "from",
        "to",
        ">range",
        ">epoch",
        ">shard",
        ">reads/s",
        ">writes/s",
        ">rows",
        ">size",
        ">hottest key",
        ">operator",
    ];
    table(&heading, &rows)
}

/// `GET /v1/members`.
pub fn members(body: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let row = |m: &serde_json::Value| {
        let leads = !body["leader"].is_null() && m["replica"] == body["leader"];
        let mut row = ["replica", "rest", "rpc", "log"].map(|key| text(&m[key])).to_vec();
        row.push(if leads { "leads" } else { "" }.to_string());
        row
    };
    let rows: Vec<_> = body["members"].as_array().into_iter().flatten().map(row).collect();
    format!("{}\nepoch {}", table(&[">replica", "rest", "rpc", "log", "role"], &rows), body["epoch"])
}

/// `GET /v1/balancer`.
pub fn balancer(body: &serde_json::Value) -> String {
    let number = |key: &str| body[key].as_f64().unwrap_or(0.0);
    let state = match (body["enabled"].as_bool(), body["acting"].as_bool()) {
        (Some(false), _) => "off",
        (_, Some(true)) => "on, and evening the load out",
        _ => "on, and watching",
    };
    format!(
        "the balancer is {state}\nimbalance {:.2} (at best {:.2}), acts above {:.2}; {:.0} statements/s in all",
        number("imbalance"),
        number("imbalance_floor"),
        number("acts_above"),
        number("statements_per_s")
    )
}

/// `GET /v1/shards`.
pub fn shards(shards: &[ShardBody]) -> String {
    let rows: Vec<Vec<String>> = shards
        .iter()
        .map(|shard| {
            let replicas = shard.info.replicas.iter().map(|(number, address)| {
                let seen = shard.replicas_seen.iter().find(|r| r.id == *number);
                let silent = seen.is_some_and(|r| !r.connected) && shard.leader != Some(*number);
                format!("{number}={address}{}", if silent { " (silent)" } else { "" })
            });
            vec![
                shard.info.id.to_string(),
                shard.status.clone(),
                shard.leader.map_or_else(|| "none".into(), |l| l.to_string()),
                shard.ranges.to_string(),
                format!("{:.0}", shard.statements_per_s.max(0.0)),
                shard.capacity_per_s.map_or_else(|| "-".into(), |c| format!("{c:.0}")),
                shard.report_age_ms.map_or_else(|| "never".into(), |age| format!("{age} ms ago")),
                replicas.collect::<Vec<_>>().join(" "),
            ]
        })
        .collect();
    let heading = [">shard", "status", ">leader", ">ranges", ">statements/s", ">limit/s", "reported", "replicas"];
    table(&heading, &rows)
}

/// `GET /v1/operators`.
pub fn operators(operators: &[OperatorBody]) -> String {
    let rows: Vec<Vec<String>> = operators
        .iter()
        .map(|operator| {
            vec![
                operator.id.to_string(),
                describe(&operator.kind),
                operator.status.clone(),
                operator.step.clone(),
                bytes(operator.bytes),
                operator.pause_us.map_or_else(|| "-".into(), |us| format!("{:.1} ms", us as f64 / 1000.0)),
                operator.decision.map_or_else(|| "-".into(), |d| d.to_string()),
                operator.detail.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&[">operator", "what", "status", "step", ">moved", ">pause", ">decision", "detail"], &rows)
}

/// `GET /v1/decisions`.
pub fn decisions(body: &DecisionsBody) -> String {
    let mut lines = Vec::new();
    for decision in &body.decisions {
        let operators = decision.operators.iter().map(|o| o.to_string()).collect::<Vec<_>>().join(", ");
        lines.push(format!(
            "{} (imbalance {:.2}, expected {:.2}; operators {operators}): {}",
            decision.id, decision.imbalance_before, decision.imbalance_expected, decision.why
        ));
        lines.extend(decision.alternatives.iter().map(|alternative| format!("    instead of: {alternative}")));
        lines.extend(decision.outcome.iter().map(|outcome| format!("    outcome: {outcome}")));
    }
    if !body.now.is_empty() {
        lines.push("now:".into());
        lines.extend(body.now.iter().map(|rejection| format!("    {rejection}")));
    }
    if lines.is_empty() {
        lines.push("nothing decided yet".into());
    }
    lines.join("\n")
}

fn bound(columns: Option<&[serde_json::Value]>) -> String {
    match columns {
        None => "…".into(),
        Some(columns) => columns.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::api::{OperatorKind, RejectionBody};
    use evenkeel_protocol::{OperatorId, RangeId, ShardId};

    #[test]
    fn a_rejection_shows_its_subject_and_its_load() {
        let shown = |range, shard| {
            let (code, reason) = ("silent".to_string(), "the shard does not report".to_string());
            let rejection = RejectionBody { code, reason, range, shard, statements_per_s: 419.6 };
            decisions(&DecisionsBody { decisions: Vec::new(), now: vec![rejection] })
        };
        let (range, shard) = (Some(RangeId(7)), Some(ShardId(2)));
        assert_eq!(shown(range, shard), "now:\n    range 7 on shard 2 (420/s): the shard does not report");
        assert_eq!(shown(None, shard), "now:\n    shard 2 (420/s): the shard does not report");
        assert_eq!(shown(None, None), "now:\n    the cluster (420/s): the shard does not report");
    }

    #[test]
    fn an_operator_shows_its_action_and_its_measures() {
        let kind = OperatorKind::Move { range: RangeId(7), from: ShardId(1), to: ShardId(2) };
        let operator = OperatorBody {
            id: OperatorId(3),
            kind,
            step: "copy".into(),
            status: "running".into(),
            detail: None,
            decision: Some(1),
            created_ms: 0,
            ended_ms: None,
            bytes: 2048,
            rows: 20,
            pause_us: Some(12_300),
        };
        let text = operators(std::slice::from_ref(&operator));
        assert!(
            text.contains("move range 7 from shard 1 to 2") && text.contains("2.0 KiB") && text.contains("12.3 ms")
        );
    }
}
