//! Pages with and without links, whole and in every two pieces.

use super::*;

fn rewriter() -> Rewriter {
    Rewriter::new(Links::new("/P", "10.0.0.1:80".to_owned(), b"api"))
}

fn rewritten(pieces: &[&str]) -> String {
    let (mut rewriter, mut out) = (rewriter(), Vec::new());
    for piece in pieces {
        rewriter.piece(piece.as_bytes(), &mut out);
    }
    rewriter.finish(&mut out);
    String::from_utf8(out).expect("text")
}

/// Wherever a page is cut, it becomes the same.
fn becomes(page: &str, expected: &str) {
    assert_eq!(rewritten(&[page]), expected);
    for at in (0..page.len()).filter(|at| page.is_char_boundary(*at)) {
        let (one, two) = page.split_at(at);
        assert_eq!(rewritten(&[one, two]), expected, "cut at {at}");
    }
}

#[test]
fn links_are_rewritten_however_they_are_written() {
    for (page, expected) in [
        (
            "<a href=\"/rewriteme\">test</a>",
            "<a href=\"/P/rewriteme\">test</a>",
        ),
        (
            "<pre><a href=\"kubelet.log\">k</a><a href=\"/google.log/\">g</a></pre>",
            "<pre><a href=\"kubelet.log\">k</a><a href=\"/P/google.log/\">g</a></pre>",
        ),
        (
            "<IMG\n Alt='>' SRC = '/a b.png'/>",
            "<IMG\n Alt='>' SRC = '/P/a b.png'/>",
        ),
        ("<a href=/a>x", "<a href=/P/a>x"),
        ("<a href=/a/ id=b>x", "<a href=/P/a/ id=b>x"),
        (
            "<a href=\"/a?b=1&amp;c=2\">",
            "<a href=\"/P/a?b=1&amp;c=2\">",
        ),
        ("<a href=\" /a \">", "<a href=\"/P/a\">"),
        ("<a/href=\"/a\"/title=t>", "<a/href=\"/P/a\"/title=t>"),
        ("<a x href=\"/a\" y=\"/b\">", "<a x href=\"/P/a\" y=\"/b\">"),
        (
            "<a href=\"http://10.0.0.1:80/a\" href=\"http://b/a\">",
            "<a href=\"/P/a\" href=\"http://b/a\">",
        ),
        (
            "<form action='/f'><button formaction=/g></form>",
            "<form action='/P/f'><button formaction=/P/g></form>",
        ),
        (
            "<!doctype html><html manifest=\"/m\"><a href=\"/\u{e4}\">",
            "<!doctype html><html manifest=\"/P/m\"><a href=\"/P/\u{e4}\">",
        ),
        ("<<a href=/a>", "<<a href=/P/a>"),
        ("1 < 2 <a href=/a>", "1 < 2 <a href=/P/a>"),
    ] {
        becomes(page, expected);
    }
}

#[test]
fn what_is_no_link_stays() {
    for page in [
        "",
        "text href=\"/a\"",
        "<b href=\"/a\">",
        "<a title=\"/a\">",
        "<a =href=\"/a\">",
        "</a href=\"/a\">",
        "</ href=\"/a\">",
        "<a b=\"<a href='/a'>\">",
        "<ahref href=\"/a\">",
        "<? <a href=\"/a\">",
        "<!x <a href=\"/a\">",
        "<!-- <a href=\"/a\"> -- > -->",
        "<script>'<a href=\"/a\">'</script>",
        "<script src=x/><a href=\"/a\">",
        "<STYLE>a</b><a href=\"/a\"></styl></Style>",
        "<title></titles><a href=\"/a\"></title>",
        "<plaintext></plaintext><a href=\"/a\">",
        "<a href=\"/a",
        "<a href=",
        "<a href",
        "<",
    ] {
        becomes(page, page);
    }
}

#[test]
fn links_behind_what_is_no_markup_are_found() {
    for begin in [
        "<!-->",
        "<!--->",
        "<!---->",
        "<!-- > -->",
        "<!-- --!>",
        "<!>",
        "</>",
        "<?x>",
        "<!-x>",
        "<script><a href='/a'></SCRIPT>",
        "<script></scrip></script >",
        "<textarea><</textarea/>",
        "<a>",
        "<a href>",
        "<a href=>",
        "<a href=''>",
    ] {
        let page = format!("{begin}<a href=\"/a\">");
        becomes(&page, &format!("{begin}<a href=\"/P/a\">"));
    }
}

#[test]
fn long_urls_stay_and_are_not_kept() {
    let long = format!("/{}", "x".repeat(LONGEST_URL));
    let page = format!("<img src=\"{long}\"><img src=\"/a\">");
    let expected = format!("<img src=\"{long}\"><img src=\"/P/a\">");
    assert_eq!(rewritten(&[&page]), expected);
    let (mut rewriter, mut out) = (rewriter(), Vec::new());
    rewriter.piece(b"<img src=\"", &mut out);
    for _ in 0..100 {
        rewriter.piece(&[b'x'; 1024], &mut out);
    }
    let kept = rewriter.url.as_ref().map_or(0, Vec::len);
    assert_eq!((out.len(), kept), (10 + 100 * 1024, 0));
}
