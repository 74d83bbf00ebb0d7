use super::*;
use crate::load::report::ChaosReport;
use crate::load::report::tests::sample_report;

#[test]
fn the_page_loads_no_external_resources() {
    let mut report = sample_report();
    report.target = "http://h/?<script>alert(1)</script>&\"".to_string();
    let page = render_html(&report);
    // The only URL in the page is the target, as text.
    for piece in ["<script", "src=", "url(", "@import", "<iframe", "onload"] {
        assert!(!page.contains(piece), "{piece}");
    }
    assert_eq!(page.matches("href=").count(), 1);
    assert!(page.contains("href=\"data:,\"") && page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("width=device-width"));
    assert!(page.contains("&lt;script&gt;"));
}

#[test]
fn plots_without_data_are_omitted() {
    let mut report = sample_report();
    let plots = |report: &LoadReport| render_html(report).matches("role=\"img\"").count();
    assert_eq!(plots(&report), 4);
    report.pids.clear();
    assert_eq!(plots(&report), 3);
    report.timeline.responses.clear();
    report.timeline.latency.clear();
    report.histogram.reset();
    assert_eq!(plots(&report), 0);
}

#[test]
fn every_opened_tag_is_closed() {
    let page = render_html(&sample_report());
    for tag in
        ["html", "head", "body", "main", "svg", "figure", "pre", "dl", "dt", "dd", "div", "text"]
    {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn faults_are_marked_on_the_timeline_with_a_legend() {
    let mut report = sample_report();
    let event = |fault, at_s, until_s| FaultEvent { fault, at_s, until_s, pids: vec![7] };
    let impact = |fault: &str, count| FaultImpact {
        fault: fault.to_string(),
        count,
        skipped: 0,
        refused: 0,
        lost: 3,
        late: 0,
    };
    report.chaos = Some(ChaosReport {
        late_after_ms: 100.0,
        faults: vec![impact("kill", 2), impact("freeze", 1), impact("kill or freeze", 0)],
        unexplained: impact("none", 0),
        unnoted: 0,
        injected: vec![event("kill", 0.2, 0.2), event("kill", 0.4, 0.4), event("freeze", 0.5, 0.8)],
    });
    let page = render_html(&report);
    // In the timelines of throughput and of latency.
    assert_eq!(page.matches("kill mark").count(), 4);
    assert_eq!((page.matches("freeze mark").count(), page.matches("freeze band").count()), (2, 2));
    assert!(page.contains("kill (2)") && !page.contains("kill or freeze ("), "{page}");
    assert!(page.contains("<th>kill or freeze</th><td>-</td>"), "{page}");
}
