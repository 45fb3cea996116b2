package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/node/client"
)

func TestPort(t *testing.T) {
	r := start(t)
	r.fake.hooks.port = func(ctx context.Context, accept func() (Half, error)) error {
		near, err := accept()
		if err != nil {
			return err
		}
		all, err := io.ReadAll(near) // the end of one direction leaves the other open
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			_, err = io.WriteString(near, strings.ToUpper(string(all)))
		}
		return errors.Join(err, near.Close())
	}
	conn, err := r.Connect(t.Context(), "j", 2, 8080)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "HELLO" {
		t.Errorf("%q %v", got, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if c := r.fake.lastCall(); c != "port j 2 8080" {
		t.Errorf("the backend heard %q", c)
	}
}

func TestPortThatIsNotReached(t *testing.T) {
	r := start(t)
	r.fake.hooks.port = func(context.Context, func() (Half, error)) error {
		return &Error{Status: http.StatusBadGateway, Code: "not_listening", Detail: "nothing listens there", Remedy: "start it"}
	}
	_, err := r.Connect(t.Context(), "j", 0, 80)
	var p *client.Problem
	if !errors.As(err, &p) || p.Code != "not_listening" || p.Remedy == "" {
		t.Errorf("%v", err)
	}
	r.fake.hooks.port = func(context.Context, func() (Half, error)) error { panic("a secret") }
	if _, err := r.Connect(t.Context(), "j", 0, 80); err == nil || strings.Contains(err.Error(), "a secret") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.fake.hooks.port = func(context.Context, func() (Half, error)) error {
		cancel()
		<-t.Context().Done() // never, for this caller
		return nil
	}
	if _, err := r.Connect(ctx, "j", 0, 80); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that left heard %v", err)
	}
}
