package job

import (
	"bytes"
	"strings"
	"testing"
)

func TestReadStatus(t *testing.T) {
	for text, want := range map[string]int{
		"HTTP/1.1 200 OK\r\n\r\n":                                           200,
		"HTTP/1.0 204 No Content\r\nX: y\r\n\r\n":                           204,
		"HTTP/1.1 302 Found\r\nLocation: http://example.org/\r\n\r\n":       302,
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 no\r\n\r\n":              503,
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nhello":       200,
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nxyz": 101,
	} {
		if got, err := readStatus(strings.NewReader(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "hello\r\n\r\n", "HTTP/1.1 200", "HTTP/1.1 20 x\r\n\r\n", "HTTP/1.1 200 OK\r\nX: y\r\n",
		strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", probeBytes/20), "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", probeBytes) + "\r\n\r\n",
	} {
		if got, err := readStatus(strings.NewReader(text)); err == nil {
			t.Errorf("%.60q is taken for an answer of status %d", text, got)
		}
	}
}

func FuzzReadStatus(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 no\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		status, err := readStatus(bytes.NewReader(data))
		if err == nil && (status < 101 || status > 999) {
			t.Errorf("status %d", status)
		}
	})
}
