package rpc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// template is the checked definition of a template, and the version that the reference means now.
func (s *Services) template(ctx context.Context, namespace string, ref *pb.TemplateRef) (*definition, error) {
	if def := s.templates.get(namespace, ref.GetName(), ref.GetVersion()); def != nil {
		return def, nil
	}
	stored, err := s.engine.GetTemplate(ctx, namespace, ref.GetName(), ref.GetVersion())
	if err != nil {
		return nil, err
	}
	if def := s.templates.get(namespace, stored.Name, stored.Version); def != nil {
		return def, nil
	}
	t, err := templateMessage(&stored)
	if err != nil {
		return nil, err
	}
	def, err := checkTemplate(t)
	if err != nil {
		// It was checked when it was registered: this release must take what an earlier one took.
		return nil, fmt.Errorf("reading template %s %s: %w", stored.Name, stored.Version, err)
	}
	def.ref = &pb.TemplateRef{Name: stored.Name, Version: &stored.Version}
	s.templates.put(namespace, def)
	return def, nil
}

// checkTemplate checks what no rule of the contract can say.
func checkTemplate(t *pb.Template) (*definition, error) {
	def, err := checkDefinition(t.GetSteps())
	if err != nil {
		return nil, err
	}
	def.schema, err = compileSchema("context_schema", t.GetContextSchema())
	return def, err
}

// newTemplate is a template as it is stored: the body without where it lives and what it is called.
func newTemplate(namespace string, t *pb.Template, actor string) (task.NewTemplate, error) {
	body := proto.CloneOf(t)
	body.Namespace, body.Name, body.Version = "", "", nil
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return task.NewTemplate{}, fmt.Errorf("writing a template: %w", err)
	}
	digest := sha256.Sum256(wire)
	return task.NewTemplate{
		Namespace: namespace, Name: t.GetName(), Version: t.GetVersion(), Body: wire, Digest: digest[:], Actor: actor,
	}, nil
}

// templateMessage is the opposite of newTemplate.
func templateMessage(v *task.TemplateView) (*pb.Template, error) {
	t := &pb.Template{}
	if err := proto.Unmarshal(v.Body, t); err != nil {
		return nil, fmt.Errorf("reading template %s %s: %w", v.Name, v.Version, err)
	}
	t.Namespace, t.Name, t.Version = v.Namespace, v.Name, &v.Version
	return t, nil
}

// templateCache holds checked definitions. A version never changes, so nothing in it is ever out of date; what "latest" means
// is asked of the database each time.
type templateCache struct {
	mu   sync.Mutex
	defs map[templateKey]*definition
}

type templateKey struct{ namespace, name, version string }

// maxTemplates bounds the cache. Beyond it, any one makes room: a server that uses more at once reads some of them anew.
const maxTemplates = 256

func newTemplateCache() *templateCache { return &templateCache{defs: map[templateKey]*definition{}} }

func (c *templateCache) get(namespace, name, version string) *definition {
	if version == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.defs[templateKey{namespace, name, version}]
}

func (c *templateCache) put(namespace string, def *definition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.defs) >= maxTemplates {
		for key := range c.defs {
			delete(c.defs, key)
			break
		}
	}
	c.defs[templateKey{namespace, def.ref.GetName(), def.ref.GetVersion()}] = def
}
