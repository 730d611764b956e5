"""Published text-to-image networks of diffusers behind one interface: velocity and token features of a flow."""
