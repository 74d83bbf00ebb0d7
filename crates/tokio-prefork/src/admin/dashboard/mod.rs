//! The dashboard: a page that shows the cluster live, from `/status` and `/events` of the admin listener.
//!
//! Its files are part of the library, so that they always fit the status of the same version. There is no build step: the browser
//! loads the JavaScript modules as they are. They may insert text only: the policy that `response.rs` sends with every page allows
//! no markup made of text.

/// A file of the dashboard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DashboardFile {
    /// The path below the root of the admin listener.
    pub(crate) path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) body: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! dashboard_files {
    ($($path:literal: $content_type:ident = $file:literal,)*) => {
        [$(DashboardFile { path: $path, content_type: $content_type, body: include_str!($file) },)*]
    };
}

static DASHBOARD_FILES: [DashboardFile; 11] = dashboard_files! {
    "/": HTML = "index.html",
    "/dashboard.css": CSS = "dashboard.css",
    "/dashboard.js": SCRIPT = "dashboard.js",
    "/dashboard/charts.js": SCRIPT = "dashboard/charts.js",
    "/dashboard/connection.js": SCRIPT = "dashboard/connection.js",
    "/dashboard/dom.js": SCRIPT = "dashboard/dom.js",
    "/dashboard/events.js": SCRIPT = "dashboard/events.js",
    "/dashboard/figures.js": SCRIPT = "dashboard/figures.js",
    "/dashboard/history.js": SCRIPT = "dashboard/history.js",
    "/dashboard/tables.js": SCRIPT = "dashboard/tables.js",
    "/dashboard/workers.js": SCRIPT = "dashboard/workers.js",
};

/// Returns the file of the dashboard at this path; `None` if there is none.
pub(crate) fn dashboard_file(path: &str) -> Option<&'static DashboardFile> {
    DASHBOARD_FILES.iter().find(|file| file.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_exactly() {
        assert_eq!(dashboard_file("/").map(|file| file.content_type), Some(HTML));
        assert_eq!(dashboard_file("/dashboard.js").map(|file| file.content_type), Some(SCRIPT));
        for path in ["", "/dashboard", "/dashboard/", "/dashboard/mod.rs", "//dashboard.js"] {
            assert_eq!(dashboard_file(path), None, "{path}");
        }
    }

    #[test]
    fn every_import_and_reference_is_served() {
        for file in &DASHBOARD_FILES {
            let quoted = file
                .body
                .split(['\'', '"'])
                .filter(|text| text.ends_with(".js") || text.ends_with(".css"));
            for reference in quoted {
                let path =
                    match (reference.strip_prefix("./"), file.path.strip_prefix("/dashboard/")) {
                        (Some(name), Some(_)) => format!("/dashboard/{name}"),
                        (Some(name), None) => format!("/{name}"),
                        (None, _) => format!("/{reference}"),
                    };
                assert!(dashboard_file(&path).is_some(), "{} refers to {reference}", file.path);
            }
        }
    }

    #[test]
    fn the_page_loads_nothing_foreign_and_inserts_no_markup() {
        const FORBIDDEN: [&str; 7] = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            " onclick=",
        ];
        for file in &DASHBOARD_FILES {
            let own = file.body.replace("http://www.w3.org/2000/svg", "");
            for forbidden in FORBIDDEN.iter().chain(&["http:", "https:", "@import", "url("]) {
                assert!(!own.contains(forbidden), "{} contains {forbidden}", file.path);
            }
        }
        let page = dashboard_file("/").expect("the page").body;
        assert_eq!(
            page.matches("<script").count(),
            page.matches("<script type=\"module\" src=").count()
        );
        assert!(!page.contains("<style"));
    }

    #[test]
    fn the_files_are_small() {
        let size: usize = DASHBOARD_FILES.iter().map(|file| file.body.len()).sum();
        assert!(size <= 60 << 10, "{size} bytes");
    }
}
