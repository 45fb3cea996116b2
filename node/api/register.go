package api

import (
	"context"
	"io"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/lumbung-net/lumbung/node/client"
)

// registrar registers routes with huma, which validates their input and writes
// their part of the OpenAPI document.
type registrar struct {
	s   *Server
	api huma.API
}

// route is what the document says of a route.
type route struct {
	method, path string
	id           string
	summary      string
	tag          string
	status       int // 0 is 200, or 204 without a body
}

func (g registrar) operation(r route) huma.Operation {
	problem := g.schema(reflect.TypeFor[client.Problem]())
	return huma.Operation{
		OperationID: r.id, Method: r.method, Path: r.path, Summary: r.summary, Tags: []string{r.tag}, DefaultStatus: r.status,
		// readWhole bounds the body and its time.
		MaxBodyBytes: maxBody + 1, BodyReadTimeout: -1, RejectUnknownQueryParameters: true,
		Responses: map[string]*huma.Response{"default": {
			Description: "A problem (RFC 9457) with what to do next",
			Content:     map[string]*huma.MediaType{problemType: {Schema: problem}},
		}},
	}
}

func (g registrar) schema(t reflect.Type) *huma.Schema {
	return g.api.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
}

// body is an answer of one JSON value.
type body[T any] struct{ Body T }

// answers registers a route that answers with one value.
func answers[I, O any](g registrar, r route, fn func(context.Context, *I) (O, error)) {
	huma.Register(g.api, g.operation(r), func(ctx context.Context, in *I) (*body[O], error) {
		out, err := fn(ctx, in)
		if err != nil {
			return nil, statusProblem{g.s.problem(err)}
		}
		return &body[O]{Body: out}, nil
	})
}

// lists registers a route that answers with a list, which is never null.
func lists[I, O any](g registrar, r route, fn func(context.Context, *I) ([]O, error)) {
	answers(g, r, func(ctx context.Context, in *I) ([]O, error) {
		out, err := fn(ctx, in)
		if out == nil {
			out = []O{}
		}
		return out, err
	})
}

// does registers a route that answers with success alone.
func does[I any](g registrar, r route, fn func(context.Context, *I) error) {
	huma.Register(g.api, g.operation(r), func(ctx context.Context, in *I) (*struct{}, error) {
		if err := fn(ctx, in); err != nil {
			return nil, statusProblem{g.s.problem(err)}
		}
		return nil, nil
	})
}

// works registers a long request: lines of progress, then the result.
func works[I, O any](g registrar, r route, fn func(context.Context, *I, func(client.Progress)) (O, error)) {
	says := "One of the three a line; a result or a problem is the last one. Closing the connection cancels the work."
	raw(g, r, longAnswer[O](g, says), func(w http.ResponseWriter, req *http.Request, in *I) {
		g.s.long(req.Context(), w, func(ctx context.Context, progress func(client.Progress)) (any, error) {
			return fn(ctx, in, progress)
		})
	})
}

// longAnswer is progress, and then a result or a problem, as lines.
func longAnswer[O any](g registrar, says string) media {
	return media{linesType, &huma.Schema{
		Type: huma.TypeObject,
		Properties: map[string]*huma.Schema{
			"progress": g.schema(reflect.TypeFor[client.Progress]()),
			"result":   g.schema(reflect.TypeFor[O]()),
			"problem":  g.schema(reflect.TypeFor[client.Problem]()),
		},
		Description: says,
	}}
}

// takes registers a route that works on its request's body as it comes. It
// answers meanwhile: a caller that is told to stop in its midst hears why, for
// the answer has begun and the body is read on until the caller leaves.
func takes[O any](g registrar, r route, body, phase string, work func(context.Context, io.Reader, func(client.Progress)) (O, error)) {
	says := "The request's body is " + body + ". The answer is lines with one of the three each; a result or a problem is the last one."
	raw(g, r, longAnswer[O](g, says), func(w http.ResponseWriter, req *http.Request, _ *nothing) {
		out := newLineWriter(w)
		if err := out.rc.EnableFullDuplex(); err != nil {
			writeProblem(w, g.s.problem(err))
			return
		}
		if out.line(client.Line{Progress: &client.Progress{Phase: phase}}) != nil || out.flush() != nil {
			return // the caller left
		}
		g.s.longTo(req.Context(), out, func(ctx context.Context, progress func(client.Progress)) (any, error) {
			return work(ctx, req.Body, progress)
		})
		if out.flush() == nil {
			_, _ = io.Copy(io.Discard, req.Body)
		}
	})
}

// media is what a route that writes its answer by itself sends.
type media struct {
	kind   string
	schema *huma.Schema
}

// raw registers a route that writes its answer by itself.
func raw[I any](g registrar, r route, m media, fn func(http.ResponseWriter, *http.Request, *I)) {
	op := g.operation(r)
	if r.status == http.StatusSwitchingProtocols {
		op.Responses["101"] = &huma.Response{Description: m.schema.Description}
	} else {
		op.Responses["200"] = &huma.Response{
			Description: http.StatusText(http.StatusOK), Content: map[string]*huma.MediaType{m.kind: {Schema: m.schema}},
		}
	}
	huma.Register(g.api, op, func(_ context.Context, in *I) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			req, w := humago.Unwrap(hc)
			fn(w, req, in)
		}}, nil
	})
}

// apiVersion is that of the routes and types, not of the node.
const apiVersion = "1.0.0"

// newAPI is huma without what it would serve by itself: its documentation page
// loads scripts from elsewhere.
func newAPI(mux humago.Mux) huma.API {
	config := huma.DefaultConfig("lumbung", apiVersion)
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.CreateHooks = nil // they add links to schemas that are not served
	config.Transformers = []huma.Transformer{transform}
	config.Info.Description = "The local API of a lumbung node. Times are RFC 3339, durations nanoseconds, sizes bytes; " +
		"an amount's units are millionths of the asset's main unit. Errors are RFC 9457 problems."
	schemas := config.Components.Schemas
	schemas.RegisterTypeAlias(reflect.TypeFor[time.Duration](), reflect.TypeFor[nanoseconds]())
	schemas.RegisterTypeAlias(reflect.TypeFor[[]byte](), reflect.TypeFor[encoded]())
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "Over TCP; the Unix socket needs none"},
	}
	config.Security = []map[string][]string{{}, {"token": {}}}
	return humago.New(mux, config)
}

// nanoseconds documents time.Duration.
type nanoseconds struct{}

// Schema implements huma.SchemaProvider.
func (nanoseconds) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Description: "nanoseconds"}
}

// encoded documents []byte, which encoding/json writes as null when it is nil.
type encoded struct{}

// Schema implements huma.SchemaProvider.
func (encoded) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Nullable: true, ContentEncoding: "base64"}
}

// finish makes the document say what requests may leave out: huma takes every
// field without omitempty for required, in requests too.
func finish(api huma.API) {
	schemas := api.OpenAPI().Components.Schemas.Map()
	for name, required := range map[string][]string{
		"SubmitRequest": {"spec", "dir"}, "Spec": {"image"}, "Array": {"first", "last"}, "LimitSpec": nil,
		"PaySpec": nil, "RetrySpec": nil, "Amount": nil, "ExecRequest": {"command"}, "StopRequest": nil, "ShutdownRequest": nil, "OutputsRequest": {"task"},
	} {
		s := schemas[name]
		s.Required = required
		s.PrecomputeMessages()
	}
	// huma's own error, which transform replaces.
	delete(schemas, "ErrorModel")
	delete(schemas, "ErrorDetail")
}
