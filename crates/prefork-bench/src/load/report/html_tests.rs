use super::*;
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
    let plots = |report: &LoadReport| render_html(report).matches("<svg").count();
    assert_eq!(plots(&report), 3);
    report.pids.clear();
    assert_eq!(plots(&report), 2);
    report.timeline.responses.clear();
    report.latency.curve.clear();
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
