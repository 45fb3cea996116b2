package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

func submitRequest() client.SubmitRequest {
	return client.SubmitRequest{Spec: client.Spec{Image: "tiles"}, Dir: "/work", Key: "k1"}
}

// result makes one value of a method's two, for a table.
func result[T any](v T, err error) (any, error) { return v, err }

func TestRoutesRoundTrip(t *testing.T) {
	r := start(t)
	at := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	tests := []struct {
		call string // as the backend hears it
		do   func(context.Context) (any, error)
		want any
	}{
		{"status", func(ctx context.Context) (any, error) { return result(r.Status(ctx)) }, filled[client.Status]()},
		{"id", func(ctx context.Context) (any, error) { return result(r.Identity(ctx)) }, filled[client.Identity]()},
		{"shutdown true", func(ctx context.Context) (any, error) { return nil, r.Shutdown(ctx, true) }, nil},
		{"netcheck", func(ctx context.Context) (any, error) { return result(r.Netcheck(ctx)) }, filled[client.Netcheck]()},
		{"ping 12D3", func(ctx context.Context) (any, error) { return result(r.Ping(ctx, "12D3")) }, filled[client.PeerPing]()},
		{"submit tiles 1073741824 /work k1", func(ctx context.Context) (any, error) {
			return result(r.Submit(ctx, submitRequest(), nil))
		}, filled[client.Job]()},
		{"quote tiles /work with 0 secrets", func(ctx context.Context) (any, error) { return result(r.Quote(ctx, submitRequest(), nil)) }, filled[client.Quote]()},
		{"jobs true", func(ctx context.Context) (any, error) { return result(r.Jobs(ctx, true)) }, filled[[]client.Job]()},
		{"job a/b c%?", func(ctx context.Context) (any, error) { return result(r.Job(ctx, "a/b c%?")) }, filled[client.JobDetail]()},
		{"stop j 5s", func(ctx context.Context) (any, error) { return result(r.StopJob(ctx, "j", 5*time.Second)) }, filled[client.Job]()},
		{"get j /out 3", func(ctx context.Context) (any, error) { return result(r.GetOutputs(ctx, "j", "/out", 3, nil)) }, filled[client.Fetched]()},
		{"get j  -1", func(ctx context.Context) (any, error) {
			return result(r.GetOutputs(ctx, "j", "", client.AllTasks, nil))
		}, filled[client.Fetched]()},
		{"offers rtx4090", func(ctx context.Context) (any, error) { return result(r.Offers(ctx, "rtx4090")) }, filled[[]client.ProviderOffer]()},
		{"load oci:/img x", func(ctx context.Context) (any, error) {
			return result(r.LoadImage(ctx, client.PathRequest{Path: "oci:/img", Name: "x"}, nil))
		}, filled[client.Image]()},
		{"load docker://debian:12 linux/arm64", func(ctx context.Context) (any, error) {
			return result(r.LoadImage(ctx, client.PathRequest{Path: "docker://debian:12", Platform: "linux/arm64"}, nil))
		}, filled[client.Image]()},
		{"from /bin/app x [/app -v] [{/etc/hosts /hosts}]", func(ctx context.Context) (any, error) {
			return result(r.ImageFrom(ctx, client.FromRequest{
				Program: "/bin/app", Name: "x", Entrypoint: []string{"/app", "-v"}, Files: []client.FileInput{{From: "/etc/hosts", To: "/hosts"}},
			}, nil))
		}, filled[client.Image]()},
		{"images", func(ctx context.Context) (any, error) { return result(r.Images(ctx)) }, filled[[]client.Image]()},
		{"rmi library/x:1", func(ctx context.Context) (any, error) { return nil, r.RemoveImage(ctx, "library/x:1") }, nil},
		{"add /f", func(ctx context.Context) (any, error) {
			return result(r.Add(ctx, client.PathRequest{Path: "/f"}, nil))
		}, filled[client.Added]()},
		{"pin bafy []", func(ctx context.Context) (any, error) {
			return result(r.Pin(ctx, client.PinRequest{CID: "bafy"}, nil))
		}, filled[client.Added]()},
		{"pin bafy [/ip4/x]", func(ctx context.Context) (any, error) {
			return result(r.Pin(ctx, client.PinRequest{CID: "bafy", From: []string{"/ip4/x"}}, nil))
		}, filled[client.Added]()},
		{"export bafy", func(ctx context.Context) (any, error) {
			var b strings.Builder
			err := r.ExportDAG(ctx, "bafy", &b)
			return b.String(), err
		}, "car of bafy"},
		{"import CAR!", func(ctx context.Context) (any, error) {
			return result(r.ImportDAG(ctx, strings.NewReader("CAR!rest"), nil))
		}, filled[client.Imported]()},
		{"addstream 5", func(ctx context.Context) (any, error) {
			return result(r.AddStream(ctx, strings.NewReader("12345"), nil))
		}, filled[client.Added]()},
		{"ls bafy/a", func(ctx context.Context) (any, error) { return result(r.List(ctx, "bafy/a")) }, filled[[]client.DirEntry]()},
		{"getpath bafy/a /d", func(ctx context.Context) (any, error) {
			return result(r.GetPath(ctx, client.GetRequest{Path: "bafy/a", Dest: "/d"}, nil))
		}, filled[client.Got]()},
		{"caches", func(ctx context.Context) (any, error) { return result(r.Caches(ctx)) }, filled[[]client.Cache]()},
		{"dropcache 0a1b", func(ctx context.Context) (any, error) { return nil, r.DropCache(ctx, "0a1b") }, nil},
		{"unpin bafy", func(ctx context.Context) (any, error) { return nil, r.Unpin(ctx, "bafy") }, nil},
		{"pins", func(ctx context.Context) (any, error) { return result(r.Pins(ctx)) }, filled[[]client.Pin]()},
		{"check", func(ctx context.Context) (any, error) { return result(r.CheckBlocks(ctx, nil)) }, filled[client.Checked]()},
		{"gc", func(ctx context.Context) (any, error) { return result(r.GC(ctx)) }, filled[client.Collected]()},
		{"pause", func(ctx context.Context) (any, error) { return result(r.ProviderPause(ctx)) }, filled[client.ProviderStats]()},
		{"resume", func(ctx context.Context) (any, error) { return result(r.ProviderResume(ctx)) }, filled[client.ProviderStats]()},
		{"drain", func(ctx context.Context) (any, error) { return result(r.ProviderDrain(ctx)) }, filled[client.ProviderStats]()},
		{"price 0.1  map[h100:2]", func(ctx context.Context) (any, error) {
			return result(r.ProviderPrice(ctx, client.PriceRequest{CPU: "0.1", By: map[string]string{"h100": "2"}}))
		}, filled[client.Prices]()},
		{"wallet", func(ctx context.Context) (any, error) { return result(r.Wallet(ctx)) }, filled[client.Wallet]()},
		{"statement 2026-05-06T07:08:09Z", func(ctx context.Context) (any, error) { return result(r.Statement(ctx, at)) }, filled[client.Statement]()},
		{"statement 0001-01-01T00:00:00Z", func(ctx context.Context) (any, error) {
			return result(r.Statement(ctx, time.Time{}))
		}, filled[client.Statement]()},
		{"contracts", func(ctx context.Context) (any, error) { return result(r.Contracts(ctx)) }, filled[[]client.Contract]()},
	}
	for _, tt := range tests {
		t.Run(tt.call, func(t *testing.T) {
			got, err := tt.do(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c := r.fake.lastCall(); c != tt.call {
				t.Errorf("the backend heard %q, want %q", c, tt.call)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v\nwant %+v", got, tt.want)
			}
			// The same route tells of a failure with all that is known of it.
			r.fake.failWith(&Error{Status: http.StatusConflict, Code: "taken", Detail: "the seat é is taken", Remedy: "sit elsewhere", Retryable: true})
			defer r.fake.failWith(nil)
			_, err = tt.do(t.Context())
			want := &client.Problem{Title: "Conflict", Status: 409, Code: "taken", Detail: "the seat é is taken", Remedy: "sit elsewhere", Retryable: true}
			if p := problemIn(t, err); !reflect.DeepEqual(p, want) {
				t.Errorf("problem %+v, want %+v", p, want)
			}
		})
	}
}

func TestErrorsBecomeProblems(t *testing.T) {
	tests := []struct {
		err       error
		status    int
		code      string
		retryable bool
	}{
		{fmt.Errorf("job x: %w", job.ErrNotFound), 404, "not_found", false},
		{fmt.Errorf("image: %w", job.ErrSpec), 422, "bad_job", false},
		{fmt.Errorf("peer p: %w", protocol.ErrRetry), 503, "try_again", true},
		{fmt.Errorf("peer p: %w", context.DeadlineExceeded), 504, "timeout", true},
		{fmt.Errorf("peer p: %w", context.Canceled), 503, "cancelled", true},
		{errors.New("disk full"), 500, "internal", false},
		{fmt.Errorf("outer: %w", &Error{Status: 409, Code: "c", Err: errors.New("inner")}), 409, "c", false},
		{&Error{Code: "no_status"}, 500, "no_status", false},
		{&client.Problem{Status: 403, Code: "p", Detail: "d"}, 403, "p", false},
		{fmt.Errorf("%s: %w", strings.Repeat("é", 5000), job.ErrNotFound), 404, "not_found", false},
	}
	for _, tt := range tests {
		p := problemOf(tt.err)
		if p.Status != tt.status || p.Code != tt.code || p.Retryable != tt.retryable || p.Title == "" || p.Detail == "" {
			t.Errorf("%.80v: %+v", tt.err, p)
		}
		if len(p.Detail) > maxDetail+len("…") || strings.ContainsRune(p.Detail, '\uFFFD') {
			t.Errorf("detail of %d bytes, or broken: %q", len(p.Detail), p.Detail[len(p.Detail)-8:])
		}
	}
	if p := problemOf(tests[6].err); p.Detail != "outer: inner" {
		t.Errorf("detail %q", p.Detail)
	}
}

func TestSubmitIsCheckedBeforeTheBackend(t *testing.T) {
	r := start(t)
	for name, change := range map[string]func(*client.SubmitRequest){
		"no image":     func(r *client.SubmitRequest) { r.Spec.Image = "" },
		"bad array":    func(r *client.SubmitRequest) { r.Spec.Array = &job.Array{First: 9, Last: 1} },
		"bad model":    func(r *client.SubmitRequest) { r.Spec.GPUs.Any = []string{"abacus"} },
		"relative dir": func(r *client.SubmitRequest) { r.Dir = "here" },
		"long key":     func(r *client.SubmitRequest) { r.Key = strings.Repeat("k", 201) },
	} {
		req := submitRequest()
		change(&req)
		_, err := r.Submit(t.Context(), req, nil)
		if p := problemIn(t, err); p.Status != 422 || p.Code != "bad_job" && p.Code != "bad_request" || p.Remedy == "" {
			t.Errorf("%s: %+v", name, p)
		}
		if c := r.fake.lastCall(); c != "" {
			t.Errorf("%s: reached the backend: %s", name, c)
		}
	}
	// What others than the Go client may leave out.
	status, _, body := do(t, r.plain(t), "POST", "http://lumbung/v1/jobs", `{"spec":{"image":"x","array":{"first":1,"last":4}},"dir":"/"}`,
		http.Header{"Content-Type": {"application/json"}})
	if status != 200 || !strings.Contains(body, `"result":`) {
		t.Errorf("a short request: %d %s", status, body)
	}
}

func TestHostileRequests(t *testing.T) {
	r := start(t)
	c := r.plain(t)
	js := http.Header{"Content-Type": {"application/json"}}
	tests := []struct {
		name, method, path, body string
		header                   http.Header
		status                   int
		code                     string
	}{
		{"too large", "POST", "/v1/ping", `{"peer":"` + strings.Repeat("x", maxBody) + `"}`, js, 413, "too_large"},
		{"no JSON", "POST", "/v1/ping", `{"peer`, js, 400, "bad_request"},
		{"nothing", "POST", "/v1/ping", ``, js, 400, "bad_request"},
		{"wrong type", "POST", "/v1/ping", `{"peer":{}}`, js, 422, "bad_request"},
		{"unknown key", "POST", "/v1/ping", `{"peer":"a","pear":"b"}`, js, 422, "bad_request"},
		{"missing key", "POST", "/v1/ping", `{}`, js, 422, "bad_request"},
		{"blank", "POST", "/v1/ping", `{"peer":"  "}`, js, 422, "bad_request"},
		{"an array", "POST", "/v1/ping", `[]`, js, 422, "bad_request"},
		{"a form, as pages send it", "POST", "/v1/ping", `{"peer":"a"}`, http.Header{"Content-Type": {"text/plain"}}, 415, "bad_media_type"},
		{"deep", "POST", "/v1/jobs", strings.Repeat("[", 100_000), js, 400, "bad_request"},
		{"overflow", "POST", "/v1/jobs/x/stop", `{"grace_ns":1e99}`, js, 422, "bad_request"},
		{"negative", "POST", "/v1/jobs/x/stop", `{"grace_ns":-1}`, js, 422, "bad_request"},
		{"unknown query", "GET", "/v1/jobs?al=true", ``, nil, 422, "bad_request"},
		{"bad query", "GET", "/v1/jobs?all=perhaps", ``, nil, 422, "bad_request"},
		{"bad task", "GET", "/v1/jobs/x/logs?task=-2", ``, nil, 422, "bad_request"},
		{"bad event id", "GET", "/v1/events", ``, http.Header{"Last-Event-Id": {"x"}}, 422, "bad_request"},
		{"relative path", "POST", "/v1/blocks/add", `{"path":"../x"}`, js, 422, "bad_request"},
		{"zero in path", "POST", "/v1/blocks/add", `{"path":"/x\u0000"}`, js, 422, "bad_request"},
		{"relative image", "POST", "/v1/images", `{"path":"oci:x"}`, js, 422, "bad_request"},
		{"no command", "POST", "/v1/jobs/x/exec", `{"command":[]}`, js, 422, "bad_request"},
		{"no upgrade", "POST", "/v1/jobs/x/exec", `{"command":["a"]}`, js, 426, "upgrade_required"},
		{"bad price", "POST", "/v1/provider/price", `{"cpu":"-1"}`, js, 422, "bad_request"},
		{"fine price", "POST", "/v1/provider/price", `{"by_model":{"h100":"0.0000001"}}`, js, 422, "bad_request"},
		{"no route", "GET", "/v1/nothing", ``, nil, 404, "no_route"},
		{"wrong method", "POST", "/v1/status", ``, nil, 405, "bad_method"},
		{"preflight", "OPTIONS", "/v1/jobs", ``, http.Header{"Origin": {"http://evil.example"}}, 405, "bad_method"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, header, body := do(t, c, tt.method, "http://lumbung"+tt.path, tt.body, tt.header)
			var p client.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("%d %.200s: %v", status, body, err)
			}
			if status != tt.status || p.Code != tt.code || p.Status != status || p.Remedy == "" || header.Get("Content-Type") != problemType {
				t.Errorf("%d %s %.300s", status, header.Get("Content-Type"), body)
			}
			if len(body) > 2*maxDetail {
				t.Errorf("the problem echoes %d bytes", len(body))
			}
			if header.Get("Access-Control-Allow-Origin") != "" {
				t.Error("another origin was let in")
			}
		})
	}
	if c := r.fake.lastCall(); c != "" {
		t.Errorf("the backend heard %q", c)
	}
}

func TestPanicIsContained(t *testing.T) {
	r := start(t)
	r.fake.hooks.status = func(context.Context) (client.Status, error) { panic("a secret of /home") }
	_, err := r.Status(t.Context())
	if p := problemIn(t, err); p.Status != 500 || p.Code != "internal" || strings.Contains(p.Detail, "secret") {
		t.Errorf("%+v", p)
	}
	r.fake.hooks.submit = func(_ context.Context, _ client.SubmitRequest, progress func(client.Progress)) (client.Job, error) {
		progress(client.Progress{Phase: "p"})
		panic("again")
	}
	if _, err := r.Submit(t.Context(), submitRequest(), nil); err == nil {
		t.Error("a panic in a long request went unseen")
	}
	r.fake.hooks.status = nil
	must(r.Status(t.Context()))(t)
}

func TestTooManyRequests(t *testing.T) {
	r := start(t)
	for range maxRequests {
		r.server.slots <- struct{}{}
	}
	_, err := r.Status(t.Context())
	if p := problemIn(t, err); p.Status != 503 || p.Code != "busy" || !p.Retryable {
		t.Errorf("%+v", p)
	}
	for range maxRequests {
		<-r.server.slots
	}
	must(r.Status(t.Context()))(t)
}

func TestEmptyListsAreNotNull(t *testing.T) {
	if raw := string(must(json.Marshal(body[[]int]{Body: []int{}}))(t)); raw != `{"Body":[]}` {
		t.Fatal(raw)
	}
	r := start(t)
	r.fake.failWith(errors.New("x"))
	status, _, _ := do(t, r.plain(t), "GET", "http://lumbung/v1/jobs", "", nil)
	if status != 500 {
		t.Errorf("status %d", status)
	}
}

func TestMetrics(t *testing.T) {
	r := start(t)
	status, _, body := do(t, r.plain(t), "GET", "http://lumbung/metrics", "", nil)
	if status != 200 || !strings.Contains(body, "lumbung_test_peers 7") {
		t.Errorf("%d %s", status, body)
	}
}

const documentPath = "openapi.json"

func TestOpenAPIIsFresh(t *testing.T) {
	r := start(t)
	status, header, body := do(t, r.plain(t), "GET", "http://lumbung/openapi.json", "", nil)
	if status != 200 || header.Get("Content-Type") != "application/openapi+json" {
		t.Fatalf("%d %v", status, header)
	}
	if *update {
		if err := os.WriteFile(documentPath, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(must(os.ReadFile(documentPath))(t)); body != want {
		t.Errorf("%s is not what is served: go test ./node/api -run OpenAPI -update", documentPath)
	}
	for _, no := range []string{"ErrorModel", "$schema", "ErrorDetail"} {
		if strings.Contains(body, no) {
			t.Errorf("the document speaks of %s", no)
		}
	}
	if !strings.Contains(body, `"openapi": "3.1.0"`) {
		t.Error("not OpenAPI 3.1")
	}
}

// Every answer must be what the document says it is.
func TestSchemasTellTheTruth(t *testing.T) {
	mux := http.NewServeMux()
	g := registrar{s: &Server{opt: Options{Backend: newFake()}}, api: newAPI(mux)}
	g.node()
	g.jobs()
	g.jobStreams()
	g.content()
	g.market()
	g.events()
	finish(g.api)
	schemas := g.api.OpenAPI().Components.Schemas
	for _, v := range []any{
		filled[client.Status](), filled[client.Identity](), filled[client.Netcheck](), filled[client.PeerPing](),
		filled[client.Job](), filled[client.Quote](), filled[client.JobDetail](), filled[client.Fetched](),
		filled[client.ProviderOffer](), filled[client.Image](), filled[client.Added](), filled[client.Pin](),
		filled[client.Collected](), filled[client.ProviderStats](), filled[client.Prices](), filled[client.Wallet](),
		filled[client.Statement](), filled[client.Contract](), filled[client.Event](), filled[client.LogLine](),
		filled[client.Problem](), filled[client.Progress](), filled[client.LastEvent](),
	} {
		for _, x := range []any{v, reflect.Zero(reflect.TypeOf(v)).Interface()} {
			var parsed any
			if err := json.Unmarshal(must(json.Marshal(x))(t), &parsed); err != nil {
				t.Fatal(err)
			}
			res := &huma.ValidateResult{}
			schema := schemas.Schema(reflect.TypeOf(v), true, "")
			huma.Validate(schemas, schema, huma.NewPathBuffer([]byte{}, 0), huma.ModeReadFromServer, parsed, res)
			for _, e := range res.Errors {
				t.Errorf("%T: %v", v, e)
			}
		}
	}
}
