//! Requests that are not what they should be.

use super::*;

fn chunked(body: &str) -> String {
    Raw::head("POST", "transfer-encoding: chunked\r\n") + body
}

/// A proxy in front may read such a request in another way. So what follows it on the connection is never taken for a request.
#[tokio::test]
async fn nothing_can_be_smuggled() {
    let bridge = bridge("").await;
    let smuggled = Raw::post("{\"smuggled\":1}");
    let length = |value: &str| Raw::head("POST", &format!("content-length: {value}\r\n")) + "{\"a\":1}";
    let cases = [
        Raw::head("POST", "content-length: 7\r\ncontent-length: 8\r\n") + "{\"a\":1}",
        length("7, 8"),
        length("+7"),
        length("0x7"),
        length("7 7"),
        length("-7"),
        length("18446744073709551623"),
        Raw::head("POST", "content-length : 7\r\n") + "{\"a\":1}",
        Raw::head("POST", "content-length\t: 7\r\n") + "{\"a\":1}",
        Raw::head("POST", "x: a\r\n content-length: 7\r\n") + "{\"a\":1}",
        Raw::head("POST", "x: a\r\n\tfolded\r\ncontent-length: 7\r\n") + "{\"a\":1}",
        Raw::head("POST", "x: a\rcontent-length: 7\r\n") + "{\"a\":1}",
        Raw::head("POST", "x: a\0b\r\n"),
        Raw::head("POST", "transfer-encoding: chunked, identity\r\n") + "0\r\n\r\n",
        Raw::head("POST", "transfer-encoding: xchunked\r\n") + "0\r\n\r\n",
        Raw::head("POST", "transfer-encoding : chunked\r\n") + "0\r\n\r\n",
        chunked("7;\n{\"a\":1}\r\n0\r\n\r\n"),
        chunked("+7\r\n{\"a\":1}\r\n0\r\n\r\n"),
        chunked("0x7\r\n{\"a\":1}\r\n0\r\n\r\n"),
        chunked("-1\r\n{\"a\":1}\r\n0\r\n\r\n"),
        chunked("10000000000000007\r\n{\"a\":1}\r\n0\r\n\r\n"),
        chunked("6\r\n{\"a\":1}\r\n0\r\n\r\n"),
        chunked("\r\n{\"a\":1}\r\n0\r\n\r\n"),
        Raw::head("POST", "").replace("HTTP/1.1", "HTTP/1.2"),
        Raw::head("POST", "").replace(" /webhook", "  /webhook"),
    ];
    beside_others(&bridge, "smuggling", async {
        for request in &cases {
            let mut client = Raw::connect(&bridge).await;
            client.try_send(request.clone() + &smuggled).await;
            let status = client.try_answer(PATIENCE).await.map(|answer| answer.status);
            assert!(status.is_none_or(|status| status == 400), "{status:?} for {request:?}");
            assert!(client.ends(PATIENCE).await, "{request:?}");
        }
    })
    .await;
    assert!(!bridge.stdout_lines().iter().any(|line| line.contains("smuggled")));
}

#[tokio::test]
async fn what_is_too_much_of_something_costs_nobody_else() {
    let bridge = bridge("").await;
    let headers: String = (0..100_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let some: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let chunks = format!("1;{}\r\n{{\r\n", "x".repeat(100)).repeat(5000);
    let cases = [
        ("100,000 headers", Raw::head("POST", &headers), 431),
        ("103 headers", Raw::head("POST", &some), 431),
        ("a header of 1 MiB", Raw::head("POST", &format!("x: {}\r\n", "x".repeat(1 << 20))), 431),
        ("50,000 objects, one in the other", Raw::post(&"{\"a\":".repeat(50_000)), 400),
        ("50,000 arrays, one in the other", Raw::post(&format!("{{\"a\":{}", "[".repeat(50_000))), 400),
        ("200,000 events", Raw::post(&format!("[{}{{}}]", "{},".repeat(200_000))), 413),
        ("chunks with long extensions", chunked(&chunks), 400),
    ];
    for (what, request, expected) in &cases {
        beside_others(&bridge, what, async {
            for _ in 0..20 {
                let mut client = Raw::connect(&bridge).await;
                client.try_send(request).await;
                assert_eq!(client.answer().await.status, *expected, "{what}");
            }
        })
        .await;
    }
}
