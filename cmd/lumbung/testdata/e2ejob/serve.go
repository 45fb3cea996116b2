package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/gorilla/websocket"
)

// serve is a small service: HTTP and WebSocket on port 8080, and on 9000 what
// comes, sent back in capitals when its end has come.
func serve() {
	raw, err := net.Listen("tcp", ":9000")
	check(err)
	go func() {
		for {
			conn, err := raw.Accept()
			check(err)
			go capitals(conn)
		}
	}()
	up := websocket.Upgrader{}
	http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "well") })
	http.HandleFunc("/size", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	http.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		for range 64 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	http.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, data, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, []byte(strings.ToUpper(string(data)))) != nil {
				return
			}
		}
	})
	l, err := net.Listen("tcp", ":8080")
	check(err)
	fmt.Println("serving")
	check(http.Serve(l, nil))
}

// service answers on port 8080: /health says how it is, and anything else that
// it is there.
func service(dir string) {
	http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(filepath.Join(dir, "go")); err != nil {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "here") })
	l, err := net.Listen("tcp", ":8080")
	check(err)
	fmt.Println("serving")
	check(http.Serve(l, nil))
}

func capitals(conn net.Conn) {
	defer conn.Close()
	if all, err := io.ReadAll(conn); err == nil {
		_, _ = io.WriteString(conn, strings.ToUpper(string(all)))
	}
}
