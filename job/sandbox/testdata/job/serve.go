package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// serve listens on three ports from PORT on: the first sends back what comes as
// it comes, the second in capitals once its end has come, the third sends zeros
// for as long as somebody takes them and says how many went.
func serve(args []string) {
	port, err := strconv.Atoi(args[0])
	check(err)
	for i, talk := range []func(*net.TCPConn){echo, capitals, zeros} {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+i)))
		check(err)
		go func() {
			for {
				conn, err := l.Accept()
				check(err)
				go func() {
					defer conn.Close()
					talk(conn.(*net.TCPConn))
				}()
			}
		}()
	}
	fmt.Println("serving")
	select {}
}

func echo(conn *net.TCPConn) {
	if _, err := io.Copy(conn, conn); err == nil {
		check(conn.CloseWrite())
	}
}

func capitals(conn *net.TCPConn) {
	all, err := io.ReadAll(conn)
	if err == nil {
		_, err = io.WriteString(conn, strings.ToUpper(string(all)))
	}
	report("answered", err)
}

func zeros(conn *net.TCPConn) {
	var n int
	for b := make([]byte, 64<<10); ; {
		k, err := conn.Write(b)
		if n += k; err != nil {
			fmt.Println("sent", n)
			return
		}
	}
}
