"""Who a person is: shape, skin, hair and beard, from MakeHuman's assets, a seed and a number."""
