package rpc

import "context"

// DefaultNamespace is the one a call acts in when it names none.
const DefaultNamespace = "default"

// Caller is who calls, and where. Handlers know nothing else of a call's origin: the namespace that a request names and the
// actor that the record shows come from here alone.
type Caller struct {
	// Namespace is the one the call acts in. A call that names a task, step or lease by its id acts in that one's namespace;
	// Namespace is then DefaultNamespace and not looked at.
	Namespace string
	// Actor is who the credential says calls. Empty: there was no credential.
	Actor string
}

// Authenticate finds out who calls method, and whether they may, for the namespace that the request names. The context holds
// the call's metadata and peer.
type Authenticate func(ctx context.Context, method, namespace string) (Caller, error)

// Anonymous lets everybody do everything, as nobody in particular.
func Anonymous(_ context.Context, _, namespace string) (Caller, error) {
	return Caller{Namespace: namespace}, nil
}

type callerKey struct{}

// caller is who made the call that ctx belongs to.
func caller(ctx context.Context) Caller {
	c, ok := ctx.Value(callerKey{}).(Caller)
	if !ok {
		return Caller{Namespace: DefaultNamespace}
	}
	return c
}

// identify adds the caller to the context of a call.
func identify(ctx context.Context, who Authenticate, method string, request any) (context.Context, error) {
	c, err := who(ctx, method, namespaceOf(request))
	if err != nil {
		return nil, err
	}
	return context.WithValue(ctx, callerKey{}, c), nil
}

// namespaceOf is the namespace that a request names. A template to be registered bears its own.
func namespaceOf(request any) string {
	switch r := request.(type) {
	case interface{ GetNamespace() string }:
		if r.GetNamespace() != "" {
			return r.GetNamespace()
		}
	case registers:
		return namespaceOf(r.GetTemplate())
	}
	return DefaultNamespace
}
